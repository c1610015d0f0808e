"""A proxy in front of a Redis that counts round trips."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class CountingProxy:
    """Passes bytes between a client and a server, and counts what the client sends at once: one round trip each."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                threading.Thread(target=self._pass, args=(client, server, 1), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, 0), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, count: int) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(1 << 20):
                # Two messages with which redis-py introduces itself on a new connection are not a request's.
                self.round_trips += count and b"SETINFO" not in data
                sink.sendall(data)
