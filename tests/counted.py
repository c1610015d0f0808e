"""The service with its work counted: for each relayed request one line `costs {...}` on standard output.

The profiler's events are counted, not time: they are the same on a fast machine and a slow one. What a C function of
a socket's is called for is a system call, so those that gevent makes are seen too.
"""

from __future__ import annotations

import _socket
import json
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gevent

import sse
from app import app

RECEIVES = frozenset({"recv", "recv_into", "recvmsg", "recvfrom"})
SENDS = frozenset({"send", "sendall", "sendmsg", "sendto"})

_PACKAGE = str(Path(sse.__file__).parent)
_look_up = socket.getaddrinfo
_look_ups = 0


class _Counter:
    """Counts what one request takes, in the greenlet that serves it.

    `calls` are of functions in `sse/`, `all_calls` of Python functions anywhere; a generator's every resumption is one.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client.fileno()
        self._greenlet = gevent.getcurrent()
        self.costs = Counter(look_ups=-_look_ups)

    def note(self, frame: FrameType, event: str, called: Any) -> None:
        """Be the profiler: it hears of all greenlets."""
        if gevent.getcurrent() is not self._greenlet:
            return
        if event == "call":
            self.costs["all_calls"] += 1
            self.costs["calls"] += frame.f_code.co_filename.startswith(_PACKAGE)
        elif event == "c_call" and isinstance(getattr(called, "__self__", None), _socket.socket):
            self._note_socket(called.__name__, called.__self__.fileno())

    def _note_socket(self, name: str, descriptor: int) -> None:
        if name in RECEIVES:
            # The request goes out after the look at a kept connection; the client gets its head when the upstream's has
            # come; what is read after that is the body.
            stage = "body" if self.costs["client_sends"] else "head" if self.costs["upstream_sends"] else "look"
            self.costs[f"{stage}_receives"] += descriptor != self._client
        elif name in SENDS:
            self.costs["client_sends" if descriptor == self._client else "upstream_sends"] += 1


class _Body:
    """A response's body that tells, when the server closes it, what the request has taken."""

    def __init__(self, body: Iterable[bytes], counter: _Counter) -> None:
        self._body = body
        self._counter = counter

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        getattr(self._body, "close", lambda: None)()
        sys.setprofile(None)
        self._counter.costs["look_ups"] += _look_ups
        sys.stdout.write(f"costs {json.dumps(self._counter.costs)}\n")


def _counted(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/upstream/"):
            return application(environ, start_response)
        counter = _Counter(environ["gunicorn.socket"])
        sys.setprofile(counter.note)
        return _Body(application(environ, start_response), counter)

    return call


def _counted_look_up(*args: Any, **kwargs: Any) -> Any:
    global _look_ups
    _look_ups += 1
    return _look_up(*args, **kwargs)


socket.getaddrinfo = _counted_look_up
app.wsgi_app = _counted(app.wsgi_app)  # type: ignore[method-assign]
