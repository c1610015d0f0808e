"""What is known of the current request: one object, which the views, the access check and the log share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from flask import request

from ..relay.stream.pump import StreamEnd

#: The upstream of a request that was refused before it was known.
UNKNOWN = "-"

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
    #: How the stream ended, if it did before its response was made.
    end: StreamEnd | None = None
    #: Whether the refusal of the request has been logged.
    is_reported: bool = False
    #: Closes the body of the response for as long as the server has not got it.
    close_unsent: Callable[[], None] | None = None


def current_call() -> Call:
    """Return the call of the current request.

    :raises RuntimeError: if there is no request.
    """
    environ = request.environ
    call: Call | None = environ.get(_KEY)
    if call is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        call = environ[_KEY] = Call(id=given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex())
    return call
