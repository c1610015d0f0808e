"""The service with its work counted: for each relayed request one line `costs {...}` on standard output.

The profiler's events are counted, not time: they are the same on a fast machine and a slow one. What a C function of
a socket's is called for is a system call, so those that gevent makes are seen too.
"""

from __future__ import annotations

import _socket
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sse
from app import app

RECEIVES = frozenset({"recv", "recv_into", "recvmsg", "recvfrom"})
SENDS = frozenset({"send", "sendall", "sendmsg", "sendto"})

_PACKAGE = str(Path(sse.__file__).parent)
_look_up = _socket.getaddrinfo
_look_ups = 0


class _Counter:
    """Counts what one request takes, in its greenlets and in the hub: there is no other at a time.

    `calls` are of functions in `sse/`, `all_calls` of Python functions anywhere; a generator's every resumption is one.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client.fileno()
        self.costs = Counter(look_ups=-_look_ups)

    def note(self, frame: FrameType, event: str, called: Any) -> None:
        """Be the profiler."""
        if event == "call" and not _is_in_thread(frame):
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

    def report(self) -> None:
        """Say what it was, and count no more."""
        sys.setprofile(None)
        self.costs["look_ups"] += _look_ups
        sys.stdout.write(f"costs {json.dumps(self.costs)}\n")


def _is_in_thread(frame: FrameType | None) -> bool:
    """Return whether a frame is of what goes on beside all requests, such as the look at the clocks."""
    while frame is not None:
        if frame.f_code.co_filename == threading.__file__:
            return True
        frame = frame.f_back
    return False


def _counted(application: Callable[..., Any]) -> Callable[..., Any]:
    def call(environ: dict[str, Any], start_response: Any) -> Any:
        if not environ["PATH_INFO"].startswith("/upstream/"):
            return application(environ, start_response)
        counter = _Counter(environ["gunicorn.socket"])
        sys.setprofile(counter.note)
        body = application(environ, start_response)
        # Not in something else that reports: the worker distinguishes a pump from other bodies.
        close = body.close

        def close_and_tell() -> None:
            close()
            counter.report()

        body.close = close_and_tell
        return body

    return call


def _counted_look_up(*args: Any, **kwargs: Any) -> Any:
    global _look_ups
    _look_ups += 1
    return _look_up(*args, **kwargs)


# Below gevent's, which is not used for upstreams.
_socket.getaddrinfo = _counted_look_up
app.wsgi_app = _counted(app.wsgi_app)  # type: ignore[method-assign]  # as sites wrap an app
