"""Opens upstreams: `open()` returns the status and the fields, and then the bytes as they arrive."""

from __future__ import annotations

import re
import ssl
from functools import partial
from typing import Any

import requests
from requests.adapters import BaseAdapter

from ...errors import (
    ClientGone,
    Draining,
    EndedByOperator,
    SSEError,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from ...protocol.http1.head import InvalidResponse
from ..exchange import Side, Stage
from ..stream.end import EndReason
from .connection import NoResponse, StaleConnection
from .dial import describe_os_error
from .pool import Pool
from .request import PreparedUpstreamRequest, UpstreamRequest
from .response import UpstreamResponse
from .trace import Fields, traced

#: RFC 9110, section 9.2.2: "A client SHOULD NOT automatically retry a request with a non-idempotent method".
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

#: Seconds after which the process that replaces a stopping one is ready.
RETRY_AFTER = 1

#: What all responses of requests have in common; a new one would make a cookie jar and more, of 2 kB.
_EMPTY_RESPONSE = vars(requests.Response())


class NoHead(UpstreamBadResponse):
    """The connection ended before the head of a response; whether the upstream has run the request is not known."""


#: What stands before the host of a URL; it may be a password.
_USERINFO = re.compile(r"//[^/]*@")


class UpstreamClient(BaseAdapter):
    """The way to all upstreams of one app.

    It is a requests adapter, called without a Session: no cookies, no redirects, no netrc, no proxies of the
    environment, no hooks.

    :param pool: opens and keeps the connections.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def open(self, request: UpstreamRequest, side: Side) -> UpstreamResponse:
        """Send a request and return the response as soon as its head has come.

        :param side: the upstream side of the exchange: it can cancel the attempt, and keeps the time.
        :raises AtCapacity: if there is no socket left for it.
        :raises TargetNotAllowed: if the address is refused.
        :raises UpstreamUnreachable: if there is no connection, or TLS fails.
        :raises UpstreamBadResponse: if the response is invalid HTTP, or a redirect.
        :raises UpstreamTimeout: if the connection or the head took too long.
        :raises Draining: if the process stops before there is a response.
        :raises EndedByOperator: if an operator ends it before there is a response.
        :raises ClientGone: if the client has left.
        """
        return traced(request.method, request.target, request.fields, partial(self._open, request, side))

    def _open(self, request: UpstreamRequest, side: Side, fields: Fields) -> UpstreamResponse:
        prepared = PreparedUpstreamRequest(request, side, fields)
        try:
            response = self._send(prepared)
        except (SSEError, InvalidResponse, OSError) as error:
            # What was cancelled while it connected looks like an upstream that is unreachable.
            if isinstance(error, SSEError) and side.reason is None:
                raise
            raise _refusal(error, side, was_sent=prepared.was_sent) from error
        received: UpstreamResponse = response.raw
        # None is the size for pieces as they come.
        received.pieces = response.iter_content(None)
        return _without_redirect(received)

    def _send(self, prepared: PreparedUpstreamRequest) -> requests.Response:
        try:
            return self.send(prepared)
        except StaleConnection as stale:
            if prepared.side.reason or not (stale.nothing_sent or prepared.method in IDEMPOTENT):
                raise
        # Once, and over a new connection: others that were kept may be as stale.
        prepared.may_reuse = False
        return self.send(prepared)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a prepared upstream request and return the response as soon as its head has come.

        Options of requests (`stream`, `timeout`, `verify` and the like) are ignored: the side of the exchange keeps the
        time, and every upstream is verified.

        :raises SSEError: see `Dialer.dial`.
        :raises StaleConnection: a kept connection was closed.
        :raises InvalidResponse: what came cannot be relayed.
        :raises OSError: the connection, or TLS, failed.
        """
        assert isinstance(request, PreparedUpstreamRequest)
        request.side.enter(Stage.OPEN)
        connection = self._pool.acquire(request.target) if request.may_reuse else None
        if connection is None:
            connection = self._pool.connect(request.target, request.side, client=request.client)
        try:
            head, rest = connection.exchange(request.data, request.side)
            received = UpstreamResponse(connection, request, head, rest, self._pool.release)
        except BaseException:
            request.side.detach()
            connection.transport.close()
            raise
        finally:
            request.was_sent = request.was_sent or connection.sent > 0
        response = requests.Response.__new__(requests.Response)
        vars(response).update(_EMPTY_RESPONSE, status_code=received.status, raw=received)
        return response


def _without_redirect(response: UpstreamResponse) -> UpstreamResponse:
    """Return a response, unless it is one that cannot be relayed.

    :raises UpstreamBadResponse: if it is not.
    """
    if response.status == 101:
        cause = "the upstream switches protocols"
    elif 300 <= response.status < 400 and response.status != 304:
        cause = f"the upstream redirects ({response.status}{_describe_location(response)})"
    else:
        return response
    response.close()
    raise UpstreamBadResponse(f"{cause}, which is not followed", cause=cause, should_retry=False)


def _describe_location(response: UpstreamResponse) -> str:
    """Return where a redirect leads, without what may be a secret."""
    value = next((value for name, value in response.fields if name.lower() == "location"), "")
    # Query and fragment may be secrets too.
    place = _USERINFO.sub("//", value.partition("?")[0].partition("#")[0])
    is_plain = place.isascii() and place.isprintable() and " " not in place
    return f" to {place[:200]}" if place and is_plain else ""


def ended(reason: EndReason, *, should_retry: bool | None = None) -> SSEError:
    """Return what it means for the client that its exchange has ended before the response."""
    if reason is EndReason.DRAINING:
        return Draining(retry_after=RETRY_AFTER, should_retry=should_retry)
    if reason is EndReason.ENDED_BY_OPERATOR:
        return EndedByOperator(should_retry=False)
    return ClientGone()


def _refusal(error: Exception, side: Side, *, was_sent: bool) -> SSEError:
    """Return what a failure means for the client; the texts hold no address and no secret."""
    # SDKs would run, and pay, a request again that the upstream has got.
    should_retry = False if was_sent else None
    if side.reason in (EndReason.CLIENT_GONE, EndReason.DRAINING, EndReason.ENDED_BY_OPERATOR):
        return ended(side.reason, should_retry=should_retry)
    if side.reason is EndReason.UPSTREAM_TIMEOUT:
        detail = "no response head in time" if was_sent else "no connection in time"
        return UpstreamTimeout(detail, cause=detail, should_retry=should_retry)
    cause = _describe(error, "the connection broke" if was_sent else "no connection")
    if not was_sent:
        return UpstreamUnreachable(cause, cause=cause)
    kind = UpstreamBadResponse if isinstance(error, InvalidResponse) else NoHead
    return kind(f"{UpstreamBadResponse.title}: {cause}", cause=cause, should_retry=should_retry)


def _describe(error: Exception, what: str) -> str:
    """Return why an attempt failed.

    :param what: what became of the connection if the system ended it.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'unexpected end').replace('_', ' ').lower()}"
    if isinstance(error, InvalidResponse | NoResponse):
        return str(error)
    return f"{what}: {describe_os_error(error)}" if isinstance(error, OSError) and error.errno else what
