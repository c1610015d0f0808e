"""The errors that end a request, each with its status and its stable `code` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

#: What OpenAI's and Anthropic's SDKs call the causes of a status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

#: Seconds of `Retry-After` above which an SDK must not wait and repeat the request by itself.
MAX_RETRY_AFTER = 60


def error_object(code: str, message: str, *, status: int) -> dict[str, str | None]:
    """Return the `error` object from which the SDKs of LLM APIs read why a request or a stream failed.

    :param status: the HTTP status of the cause; it decides the type.
    """
    kind = "insufficient_quota" if code == QuotaExceeded.code else _TYPES.get(status, "api_error")
    return {"message": message, "type": kind, "code": code, "param": None}


class SSEError(Exception):
    """The base of all refusals by the gateway.

    :param detail: what was wrong, for the sender; a lower-case clause that never contains a secret.
    :param retry_after: seconds after which the same request would be admitted; sent as `Retry-After`.
    :param cause: what went wrong, for the log.
    :param should_retry: False if an SDK must not repeat the request by itself; sent as `X-Should-Retry`.
    """

    #: More fields of the response.
    fields: Sequence[tuple[str, str]] = ()
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The gateway failed"

    def __init_subclass__(cls, *, status: int = 0, code: str = "", title: str = "") -> None:
        """Take what a refusal has of its own from its class statement; a variant of another one has nothing."""
        super().__init_subclass__()
        if status:
            cls.status, cls.code, cls.title = status, code, title

    def __init__(
        self, detail: str = "", *, retry_after: int | None = None, cause: str = "", should_retry: bool | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after
        self.cause = cause
        self.should_retry = False if (retry_after or 0) > MAX_RETRY_AFTER else should_retry

    def problem(self, request_id: str) -> dict[str, Any]:
        """Return the JSON of the response (RFC 9457), with what SDKs of LLM APIs read of it."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            "error": error_object(self.code, self.detail, status=self.status),
        }


class InvalidRequest(
    SSEError, status=400, code="invalid_request", title="The request is not one the gateway understands"
): ...


class MalformedBody(InvalidRequest):
    """The request body is malformed, so where the next request of the connection begins is unknown."""


class Unauthenticated(SSEError, status=401, code="unauthenticated", title="No credential, or a wrong one"): ...


class TargetNotAllowed(SSEError, status=403, code="target_not_allowed", title="The target is not allowed"):
    """No upstream covers the target, or its address is refused.

    It takes no detail: one message for all causes, so that comparing refusals does not reveal a network.

    :param cause: what went wrong, for the log alone.
    """

    def __init__(self, *, cause: str = "the URL is one that is never called") -> None:
        super().__init__(cause=cause)


class CrossSite(
    SSEError,
    status=403,
    code="cross_site_request",
    title="Another site's page may not call with this site's login; SSE_CORS_ORIGINS can name its origin",
):
    """A page of another site sent the request; the client is known by what its browser adds, such as a cookie."""


class ChannelNotAllowed(SSEError, status=403, code="channel_not_allowed", title="The channel is not allowed"):
    """The site's rule does not let the request read a channel.

    It takes no detail: the refusal is the same whether there is such a channel or not.
    """


class RouteNotAllowed(
    SSEError, status=403, code="route_not_allowed", title="The method and path are not among those that are allowed"
): ...


class ModelNotAllowed(
    SSEError, status=403, code="model_not_allowed", title="The request names no model, or one that is not allowed"
): ...


class NotFound(SSEError, status=404, code="not_found", title="There is nothing at this path"): ...


class MethodNotAllowed(SSEError, status=405, code="method_not_allowed", title="The method is not allowed here"):
    """The method is not allowed.

    :param allowed: the methods that are.
    """

    def __init__(self, *, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = allowed


class LengthRequired(
    SSEError, status=411, code="length_required", title="The server passes on no request body without a Content-Length"
): ...


class TooLarge(SSEError, status=413, code="too_large", title="The request is too large"): ...


class UriTooLong(SSEError, status=414, code="uri_too_long", title="The request line is longer than 8,190 bytes"): ...


class UnsupportedMediaType(
    SSEError, status=415, code="unsupported_media_type", title="The request body is not JSON"
): ...


class UpgradeRequired(
    SSEError, status=426, code="websocket_not_supported", title="WebSockets are not relayed: use HTTP"
):
    """WebSockets are not relayed; clients that try one first fall back to HTTP on this status."""


class Throttled(SSEError, status=429, code="throttled", title="Too many requests"): ...


class QuotaExceeded(
    SSEError, status=429, code="quota_exceeded", title="The client has spent its tokens of this period"
): ...


class TooManyStreams(SSEError, status=429, code="too_many_streams", title="Too many open streams of this client"): ...


class FieldsTooLarge(
    SSEError, status=431, code="fields_too_large", title="The request has too many fields, or too long ones"
): ...


class ClientGone(SSEError, status=499, code="client_gone", title="The client has left"):
    """The client left before the upstream responded; no client reads this response, it is for the access log.

    The status is nginx's for the same case; RFC 9110 has none.
    """


class UpstreamUnreachable(
    SSEError, status=502, code="upstream_unreachable", title="The upstream cannot be reached"
): ...


class UpstreamBadResponse(
    SSEError, status=502, code="upstream_bad_response", title="The upstream sent an invalid HTTP response"
): ...


class AtCapacity(
    SSEError, status=503, code="at_capacity", title="The gateway has as many open streams as it may have"
): ...


class Draining(SSEError, status=503, code="draining", title="The gateway is about to stop"): ...


class EndedByOperator(
    SSEError, status=503, code="ended_by_operator", title="An operator of the gateway has ended the request"
): ...


class StoreUnavailable(SSEError, status=503, code="store_unavailable", title="The store is unavailable"): ...


class UpstreamTimeout(SSEError, status=504, code="upstream_timeout", title="The upstream did not respond in time"): ...


class InvalidOffset(SSEError, status=400, code="invalid_offset", title="The position is not one of the recording"): ...


class StreamNotFound(SSEError, status=404, code="stream_not_found", title="There is no such stream"):
    """There is no such recording, or it is another client's.

    It takes no detail: one message for both, so that recordings of others cannot be found.
    """


class StreamInterrupted(
    SSEError, status=410, code="stream_interrupted", title="The stream was interrupted, and nothing follows"
):
    """The recording ended before the upstream's response did, and all of it has been read.

    :param reason: why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream ended as {reason}, and nothing follows")
        self.fields = (("Stream-End", reason),)


class OffsetExpired(
    SSEError, status=410, code="offset_expired", title="The bytes at the position are not kept any more"
):
    """The position is before what is kept.

    :param start: the first position that is kept.
    """

    def __init__(self, start: str) -> None:
        super().__init__()
        self.fields = (("Stream-Start-Offset", start),)


class StreamExpired(SSEError, status=410, code="stream_expired", title="The stream has expired or was erased"): ...


class IdempotencyKeyReused(
    SSEError, status=422, code="idempotency_key_reused", title="The idempotency key belongs to another request"
): ...


#: Every refusal there is, for the documents that list them.
REFUSALS: tuple[type[SSEError], ...] = tuple(SSEError.__subclasses__())
