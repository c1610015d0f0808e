"""What can go wrong, as one tree: each error has the status and the stable `code` of its response (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class SSEError(Exception):
    """The base of all refusals of the gateway's own.

    :param detail: what was wrong, for the person who sent it; a lower-case clause, never with a secret in it.
    :param retry_after: seconds after which the same request would be let in; sent as `Retry-After`.
    :param cause: what went wrong, for the log.
    :param should_retry: False if an SDK must not repeat the request by itself; sent as `X-Should-Retry`.
    """

    #: More fields of the response.
    fields: Sequence[tuple[str, str]] = ()
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The gateway failed"

    def __init__(
        self, detail: str = "", *, retry_after: int | None = None, cause: str = "", should_retry: bool | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after
        self.cause = cause
        self.should_retry = should_retry


class InvalidRequest(SSEError):
    status = 400
    code = "invalid_request"
    title = "The request is not one the gateway understands"


class Unauthenticated(SSEError):
    status = 401
    code = "unauthenticated"
    title = "No credential, or a wrong one"


class TargetNotAllowed(SSEError):
    """No upstream covers the target, or its address is refused.

    It takes no detail: one message for all causes, so that a network cannot be scanned by comparing refusals.
    """

    status = 403
    code = "target_not_allowed"
    title = "The target is not allowed"

    def __init__(self) -> None:
        super().__init__()


class CrossSite(SSEError):
    """A page of another site sent the request; the client is known by what its browser adds, such as a cookie."""

    status = 403
    code = "cross_site_request"
    title = "Another site's page may not call with this site's login; SSE_CORS_ORIGINS can name its origin"


class NotFound(SSEError):
    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(SSEError):
    """The method is not allowed.

    :param allowed: the methods that are.
    """

    status = 405
    code = "method_not_allowed"
    title = "The method is not allowed here"

    def __init__(self, *, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = allowed


class LengthRequired(SSEError):
    status = 411
    code = "length_required"
    title = "The server passes on no request body without a Content-Length"


class TooLarge(SSEError):
    status = 413
    code = "too_large"
    title = "The request is too large"


class UriTooLong(SSEError):
    status = 414
    code = "uri_too_long"
    title = "The request line is longer than 8,190 bytes"


class UnsupportedMediaType(SSEError):
    status = 415
    code = "unsupported_media_type"
    title = "The request body is not JSON"


class UpgradeRequired(SSEError):
    """WebSockets are not relayed; clients that try one first fall back to HTTP on this status."""

    status = 426
    code = "websocket_not_supported"
    title = "WebSockets are not relayed: use HTTP"


class Throttled(SSEError):
    status = 429
    code = "throttled"
    title = "Too many requests"


class TooManyStreams(SSEError):
    status = 429
    code = "too_many_streams"
    title = "Too many open streams of this client"


class FieldsTooLarge(SSEError):
    status = 431
    code = "fields_too_large"
    title = "The request has too many fields, or too long ones"


class ClientGone(SSEError):
    """The client left before the upstream responded; this response is for the access log alone.

    The status is nginx's, which has the same use for it; RFC 9110 has none.
    """

    status = 499
    code = "client_gone"
    title = "The client has left"


class UpstreamUnreachable(SSEError):
    status = 502
    code = "upstream_unreachable"
    title = "The upstream cannot be reached"


class UpstreamBadResponse(SSEError):
    status = 502
    code = "upstream_bad_response"
    title = "The upstream sent an invalid HTTP response"


class AtCapacity(SSEError):
    status = 503
    code = "at_capacity"
    title = "The gateway has as many open streams as it may have"


class Draining(SSEError):
    status = 503
    code = "draining"
    title = "The gateway is about to stop"


class UpstreamTimeout(SSEError):
    status = 504
    code = "upstream_timeout"
    title = "The upstream did not respond in time"


class InvalidOffset(SSEError):
    status = 400
    code = "invalid_offset"
    title = "The position is not one of the recording"


class StreamNotFound(SSEError):
    """There is no such recording, or it is another client's.

    It takes no detail: one message for both, so that recordings of others cannot be found.
    """

    status = 404
    code = "stream_not_found"
    title = "There is no such stream"

    def __init__(self) -> None:
        super().__init__()


class StreamInterrupted(SSEError):
    """The recording ended before the upstream's response did, and all of it has been read.

    :param reason: why.
    """

    status = 410
    code = "stream_interrupted"
    title = "The stream was interrupted, and nothing follows"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream ended as {reason}, and nothing follows")
        self.fields = (("Stream-End", reason),)


class OffsetExpired(SSEError):
    """The position is before what is kept.

    :param start: the first position that is kept.
    """

    status = 410
    code = "offset_expired"
    title = "The bytes at the position are not kept any more"

    def __init__(self, start: str) -> None:
        super().__init__()
        self.fields = (("Stream-Start-Offset", start),)


class StreamExpired(SSEError):
    status = 410
    code = "stream_expired"
    title = "The stream has expired or was erased"


class IdempotencyKeyReused(SSEError):
    status = 422
    code = "idempotency_key_reused"
    title = "The idempotency key belongs to another request"


class StoreUnavailable(SSEError):
    status = 503
    code = "store_unavailable"
    title = "The store of recordings is unavailable"


#: Every refusal there is, for the documents that list them.
REFUSALS: tuple[type[SSEError], ...] = tuple(SSEError.__subclasses__())
