"""One object for each request, which the views, the access check and the log share."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, request

from ..relay.stream.end import StreamEnd
from ..relay.stream.pump import Pump
from .access.clients import Client
from .access.limit_storage import Limit, Verdict

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The upstream of a request that was refused before it was known.
UNKNOWN = "-"

#: Seconds after which a dropped response is closed: until then, a site may send its body in a response of its own.
UNSENT_TIMEOUT = 1.0

_KEY = "sse.call"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to a view of the gateway, or to a view of the site that relays or streams."""

    #: The client's `X-Request-Id` if it is valid, else a new one.
    id: str
    #: The address that limits count: of the client, or of the proxy that is not trusted.
    address: str = ""
    #: What limits count: the client's name, or its address if it has none.
    client: str = ""
    #: The client's name for the log, None if it has none: addresses are not logged.
    name: str | None = None
    #: The upstream's name in the table, or what stands for one in the log and the metrics.
    upstream: str = UNKNOWN
    #: What the client may do besides, None if the settings say all of it.
    rules: Client | None = None
    #: More that is logged of the stream.
    log_fields: dict[str, Any] = field(default_factory=dict)
    #: How the stream ended, if it did before its response was made.
    end: StreamEnd | None = None
    #: The limit that is being counted, and what was counted last.
    limit: Limit | None = None
    counted: Verdict | None = None
    #: The bodies of responses that the server has not got; a view may relay more than once.
    unsent: list[Pump] = field(default_factory=list)


def current_call() -> Call:
    """Return the call of the current request.

    :raises RuntimeError: if there is no request.
    """
    return _call(request.environ)


def current_request() -> tuple[Request, Call]:
    """Return the current request, itself instead of Flask's proxy, which costs four calls at each use, and its call.

    :raises RuntimeError: if there is no request.
    """
    # Flask gives the proxy the type of what it stands for, which has no such method.
    unwrapped: Request = request._get_current_object()  # type: ignore[attr-defined]  # the proxy's method, which Flask's documentation names
    return unwrapped, _call(unwrapped.environ)


def _call(environ: WSGIEnvironment) -> Call:
    call: Call | None = environ.get(_KEY)
    if call is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        call = environ[_KEY] = Call(id=given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex())
    return call


def close_dropped(_: Flask, **__: object) -> None:
    """Close the responses of the current request that the site has dropped: Flask does not."""
    call: Call | None = request.environ.get(_KEY)
    for pump in call.unsent if call is not None else ():
        timer = threading.Timer(UNSENT_TIMEOUT, pump.close_unsent)
        timer.daemon = True
        timer.start()
