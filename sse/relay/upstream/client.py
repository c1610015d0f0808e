"""Opens upstreams: `open()` gives the status and the fields, then the bytes as they arrive."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import requests
from urllib3.exceptions import HTTPError, SSLError

from ...errors import (
    ClientGone,
    Draining,
    SSEError,
    UpstreamBadResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from ...protocol.target.parse import Target
from ..exchange import Side, Stage, current
from ..stream.end import EndReason
from .adapter import RelayAdapter
from .body import RawBody
from .connection import StaleConnection

#: RFC 9110, section 9.2.2: "A client SHOULD NOT automatically retry a request with a non-idempotent method".
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

#: Seconds after which the process that replaces a stopping one is there.
RETRY_AFTER = 1

#: Names the gateway where the client names no product. RFC 9110, section 10.1.5.
USER_AGENT = "flask-sse-relay"


@dataclass(frozen=True, kw_only=True)
class UpstreamRequest:
    """What is sent to an upstream; all of it is judged and final."""

    method: str
    target: Target
    fields: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


class _Prepared(requests.PreparedRequest):
    """What an adapter sends. Filled by hand: requests' own preparation would parse and re-encode the URL again."""

    def __init__(self, request: UpstreamRequest) -> None:
        self.target = request.target
        self.method = request.method
        self.body = request.body
        # RFC 9110, section 7.2: "A user agent that sends Host SHOULD send it as the first field in the header section".
        self.fields = [("Host", request.target.authority), *request.fields]
        if "user-agent" not in {name.lower() for name, _ in request.fields}:
            self.fields.append(("User-Agent", USER_AGENT))
        if request.body is not None:
            self.fields.append(("Content-Length", str(len(request.body))))


class UpstreamResponse:
    """An upstream's answer, whose head has come; whoever got it closes it."""

    __slots__ = ("_pieces", "_raw", "fields", "status")

    def __init__(self, response: requests.Response) -> None:
        self._raw: RawBody = response.raw
        # requests hands `raw.stream()` through untouched; None is the size that asks for pieces as they come.
        self._pieces = response.iter_content(None)
        self.status = self._raw.status
        #: All fields as they came, repeated ones apart.
        self.fields = self._raw.fields

    def read(self) -> bytes | None:
        """Return what one read of the socket brought, None if nothing has come, b"" at the end.

        :raises TruncatedBody: if the body ends before its framing says so.
        """
        return next(self._pieces, b"")

    def wait(self, timeout: float | None) -> None:
        """Wait until there is something to read, or for so many seconds."""
        self._raw.wait(timeout)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` when there is something to read; return what ends that, None if it has to be waited for."""
        return self._raw.subscribe(wake)

    def cancel(self) -> None:
        """Do nothing: what cancels it is the side that it was opened for."""

    def close(self) -> None:
        """Let go of the connection; may be called again."""
        self._raw.close()

    def __enter__(self) -> UpstreamResponse:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Upstreams:
    """The way to all upstreams of one app: one pool of kept connections."""

    def __init__(self, adapter: RelayAdapter) -> None:
        self._adapter = adapter

    def open(self, request: UpstreamRequest, side: Side) -> UpstreamResponse:
        """Send a request and return the answer as soon as its head is there.

        :param side: may cut the attempt; the time-outs are its.
        :raises AtCapacity: if there is no socket left for it.
        :raises TargetNotAllowed: if the address is refused.
        :raises UpstreamUnreachable: if there is no connection, or TLS does not come about.
        :raises UpstreamBadResponse: if what answers is no HTTP, or a redirect.
        :raises UpstreamTimeout: if the connection or the head was not there in time.
        :raises Draining: if the process stops before there is an answer.
        :raises ClientGone: if nobody waits for the answer any more.
        """
        token = current.set(side)
        try:
            return self._send(request, side)
        except SSEError as error:
            # What was cut while it dialled looks like an upstream that nobody answers at.
            if side.reason is None:
                raise
            raise _refusal(error, side) from error
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise _refusal(error, side) from error
        finally:
            current.reset(token)

    def _send(self, request: UpstreamRequest, side: Side) -> UpstreamResponse:
        side.enter(Stage.OPEN)
        try:
            response = self._try(request)
        except StaleConnection as stale:
            if side.reason or not (stale.nothing_sent or request.method in IDEMPOTENT):
                raise http.client.HTTPException("the upstream closed the connection") from stale
            side.enter(Stage.OPEN)
            response = self._try(request)
        if 300 <= response.status < 400 and response.status != 304:
            response.close()
            raise UpstreamBadResponse("the upstream redirects, and redirects are not followed")
        if response.status == 101:
            response.close()
            raise UpstreamBadResponse("the upstream switches protocols")
        return response

    def _try(self, request: UpstreamRequest) -> UpstreamResponse:
        return UpstreamResponse(self._adapter.send(_Prepared(request)))


def _refusal(error: Exception, side: Side) -> SSEError:
    """Tell what a failure means for the client. The texts are ours: those of requests hold URLs with their queries."""
    if side.reason is EndReason.CLIENT_GONE:
        return ClientGone()
    if side.reason is EndReason.DRAINING:
        return Draining(retry_after=RETRY_AFTER)
    if side.reason is EndReason.UPSTREAM_TIMEOUT:
        return UpstreamTimeout("no response head in time" if side.stage is Stage.HEAD else "no connection in time")
    if side.stage is Stage.OPEN:
        is_tls = isinstance(error, ssl.SSLError | SSLError)
        return UpstreamUnreachable("TLS does not come about" if is_tls else "no connection")
    return UpstreamBadResponse()
