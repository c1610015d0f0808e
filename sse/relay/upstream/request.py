"""The requests adapter: `requests.adapters.BaseAdapter` over connections of our own.

A `requests.Response` of it is read by `iter_content(None)`, which hands through what `Body.stream()` yields. It is
called without a Session: no cookies, no redirects, no netrc, no proxies of the environment, no hooks.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import certifi
import requests
from requests.adapters import BaseAdapter

from ...protocol.http1.head import encode_request_head
from ...protocol.target.parse import Target
from ..exchange import Side
from .body import Body
from .connection import Connection
from .pool import Pool

#: Names the gateway where the client names no product. RFC 9110, section 10.1.5.
USER_AGENT = "flask-sse-relay"

#: What all responses have in common; a new one would make a cookie jar and more, of 2 kB.
_EMPTY_RESPONSE = vars(requests.Response())


@dataclass(kw_only=True, slots=True)
class UpstreamRequest:
    """What is sent to an upstream; all of it is checked and final.

    :param client: the client's name; look-ups for one client do not delay those for another.
    """

    method: str
    target: Target
    fields: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    client: str = ""


class PreparedUpstreamRequest(requests.PreparedRequest):
    """What the adapter sends; requests' own preparation would parse and encode the URL again.

    :param side: the upstream side of the exchange.
    :param fields: all but those that this adds: Host, User-Agent, Content-Length.
    """

    def __init__(self, request: UpstreamRequest, side: Side, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.target = request.target
        self.side = side
        self.client = request.client
        self.method = request.method
        #: Whether a kept connection may be used.
        self.may_reuse = True
        named = {name.lower(): value for name, value in fields}
        #: Whether the connection may carry another exchange. RFC 4559, section 6: Negotiate, like NTLM, "assumes that
        #: the TCP connection is authenticated"; another client's request on it would be logged in.
        self.may_keep = named.get("authorization", "").partition(" ")[0].lower() not in ("negotiate", "ntlm")
        #: Whether a part of the request was sent.
        self.was_sent = False
        # RFC 9110, section 7.2: "A user agent that sends Host SHOULD send it as the first field in the header section".
        lines = [("Host", request.target.authority), *fields]
        if "user-agent" not in named:
            lines.append(("User-Agent", USER_AGENT))
        if request.body is not None:
            lines.append(("Content-Length", str(len(request.body))))
        #: The whole request as it is sent.
        self.data = encode_request_head(request.method, request.target.request_target, lines) + (request.body or b"")


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Return the context that verifies upstreams; one for all, because loading the authorities takes 20 ms of CPU.

    :param ca_file: PEM file of further authorities, or "".
    """
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    # RFC 9525, section 6.3: a name in the subject's CN is no reference identity any more.
    context.hostname_checks_common_name = False
    # Python 3.11.2, Debian 12's, sets it: a truncated connection would look like one that was closed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


class UpstreamAdapter(BaseAdapter):
    """Sends prepared upstream requests.

    :param pool: opens and keeps the connections.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request and return the response as soon as its head has come.

        Options of requests (`stream`, `timeout`, `verify` and the like) are ignored: the side of the exchange keeps the
        time, and every upstream is verified.

        :raises SSEError: see `Dialer.dial`.
        :raises StaleConnection: a kept connection was closed.
        :raises InvalidResponse: what came cannot be relayed.
        :raises OSError: the connection, or TLS, failed.
        """
        if not isinstance(request, PreparedUpstreamRequest):
            raise TypeError("the adapter sends prepared upstream requests only")
        connection = self._pool.acquire(request.target) if request.may_reuse else None
        if connection is None:
            connection = self._pool.connect(request.target, request.side, client=request.client)
        try:
            return _new_response(self._exchange(connection, request))
        except BaseException:
            request.side.detach()
            connection.transport.close()
            raise
        finally:
            request.was_sent = request.was_sent or connection.sent > 0

    def _exchange(self, connection: Connection, request: PreparedUpstreamRequest) -> Body:
        head, rest = connection.exchange(request.data, request.side)
        release = self._pool.release if request.may_keep else _close
        return Body(connection, head, rest, method=request.method or "", side=request.side, release=release)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._pool.close()


def _close(connection: Connection) -> None:
    connection.transport.close()


def _new_response(body: Body) -> requests.Response:
    response = requests.Response.__new__(requests.Response)
    vars(response).update(_EMPTY_RESPONSE)
    response.status_code = body.status
    # requests hints at urllib3's response, and uses `stream()` of it.
    response.raw = body
    return response
