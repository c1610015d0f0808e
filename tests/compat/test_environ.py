"""Contract with WSGI servers: what sse/compat/environ.py expects of what they show of a connection."""

from __future__ import annotations

import inspect
import socket
from io import BytesIO

import cheroot.server
from gevent import pywsgi
from gunicorn.http import wsgi

from sse.compat.environ import GUNICORN_SOCKET, input_descriptor

REMEDY = "a server has changed: adapt sse/compat/environ.py, or name the versions without it in docs/servers.md"


def test_gunicorn_shows_the_clients_socket() -> None:
    assert f'"{GUNICORN_SOCKET}": sock' in inspect.getsource(wsgi.default_environ), REMEDY


def test_a_request_body_leads_to_the_clients_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:
        body = pywsgi.Input(file, 5)
        assert input_descriptor(body) == ours.fileno(), REMEDY
        assert input_descriptor(cheroot.server.KnownLengthRFile(file, 5)) == ours.fileno(), REMEDY
        assert input_descriptor(file) == ours.fileno()
    assert input_descriptor(BytesIO()) == -1
