"""Servers that have no command of their own: `python -m tests.support.embedded_server pywsgi module:app`."""

from __future__ import annotations

import importlib
import socket
import sys
from typing import Any


def load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def pywsgi(name: str) -> None:
    from gevent import monkey

    monkey.patch_all()
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), load(name))
    server.start()
    announce(server.server_port)
    server.serve_forever()


def cheroot(name: str) -> None:
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), load(name), numthreads=9)
    server.prepare()
    announce(server.bind_addr[1])
    server.serve()


def a2wsgi(name: str) -> None:
    import uvicorn
    from a2wsgi import WSGIMiddleware

    listener = socket.create_server(("127.0.0.1", 0))
    announce(listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(WSGIMiddleware(load(name)), log_level="warning")).run([listener])


def announce(port: int) -> None:
    print(f"Listening at: http://127.0.0.1:{port}", flush=True)


if __name__ == "__main__":
    {"pywsgi": pywsgi, "cheroot": cheroot, "a2wsgi": a2wsgi}[sys.argv[1]](sys.argv[2])
