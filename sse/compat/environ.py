"""What WSGI servers show of the client's connection, beyond WSGI and their documentation."""

from __future__ import annotations

from typing import Any

NAMES = {
    "gunicorn.socket": "gunicorn: the client's socket, in environ",
    "Input.rfile": "gevent.pywsgi and cheroot: the file that a request body is read from",
}

GUNICORN_SOCKET = "gunicorn.socket"


def input_descriptor(file: Any) -> int:
    """Return what a request body is read from, -1 if that is no file of the system's."""
    while (below := getattr(file, "rfile", None)) is not None:
        file = below
    try:
        return int(file.fileno())
    except (AttributeError, OSError, ValueError):
        return -1
