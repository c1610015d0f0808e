"""Opens upstreams: `open()` returns the status and the fields, and then the bytes as they arrive."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from functools import partial

import requests

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
from ..stream.source import Tap, TruncatedBody
from .adapter import PreparedUpstreamRequest, UpstreamAdapter, UpstreamRequest
from .body import Body
from .connection import NoResponse, StaleConnection
from .dial import describe_os_error
from .trace import Fields, traced

#: RFC 9110, section 9.2.2: "A client SHOULD NOT automatically retry a request with a non-idempotent method".
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

#: Seconds after which the process that replaces a stopping one is ready.
RETRY_AFTER = 1


class NoHead(UpstreamBadResponse):
    """The connection ended before the head of a response; whether the upstream has run the request is not known."""


#: What stands before the host of a URL; it may be a password.
_USERINFO = re.compile(r"//[^/]*@")


class UpstreamResponse:
    """An upstream's response, whose head has come; a `Source` that its owner closes."""

    __slots__ = ("_body", "_pieces", "fields", "status", "tap")

    def __init__(self, response: requests.Response) -> None:
        self._body: Body = response.raw
        # requests hands `raw.stream()` through unchanged; None is the size for pieces as they come.
        self._pieces: Iterator[bytes | None] = response.iter_content(None)
        self.status = self._body.status
        #: All fields as they came, repeated ones apart.
        self.fields = self._body.fields
        #: What looks at the bytes as they are read.
        self.tap: Tap | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the body has been read to the end that its framing promised."""
        return self._body.is_complete

    def read(self) -> bytes | None:
        """Return what has arrived, one piece for a read of the socket; None if nothing has yet, b"" at the end.

        :raises TruncatedBody: if the body ends before the end of its framing.
        """
        piece = next(self._pieces, b"")
        if piece == b"" and not self._body.is_complete:
            raise TruncatedBody("the body was closed, or has ended early before")
        if self.tap is not None and piece:
            self.tap.feed(piece)
        return piece

    def wait(self, timeout: float | None = None) -> None:
        """Block until `read()` may return something else than None, or for `timeout` seconds (None: for ever)."""
        self._body.wait(timeout)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` from the event loop each time `read()` may return something; return what unsubscribes."""
        return self._body.subscribe(wake)

    def cancel(self) -> None:
        """End the response now, waking its reader; idempotent, never waits, callable from any thread."""
        self._body.cancel()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end; idempotent."""
        self._body.close()

    def __enter__(self) -> UpstreamResponse:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class UpstreamClient:
    """The way to all upstreams of one app.

    :param adapter: has the connections.
    """

    def __init__(self, adapter: UpstreamAdapter) -> None:
        self._adapter = adapter

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
        except SSEError as error:
            # What was cancelled while it connected looks like an upstream that is unreachable.
            if side.reason is None:
                raise
            raise _refusal(error, side, was_sent=prepared.was_sent) from error
        except (InvalidResponse, StaleConnection, OSError) as error:
            raise _refusal(error, side, was_sent=prepared.was_sent) from error
        return _without_redirect(response, request)

    def _send(self, prepared: PreparedUpstreamRequest) -> UpstreamResponse:
        prepared.side.enter(Stage.OPEN)
        try:
            return UpstreamResponse(self._adapter.send(prepared))
        except StaleConnection as stale:
            if prepared.side.reason or not (stale.nothing_sent or prepared.method in IDEMPOTENT):
                raise
        # Once, and over a new connection: others that were kept may be as stale.
        prepared.may_reuse = False
        prepared.side.enter(Stage.OPEN)
        return UpstreamResponse(self._adapter.send(prepared))


def _without_redirect(response: UpstreamResponse, request: UpstreamRequest) -> UpstreamResponse:
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
    if isinstance(error, StaleConnection | InvalidResponse | NoResponse):
        return str(error)
    return f"{what}: {describe_os_error(error)}" if isinstance(error, OSError) and error.errno else what
