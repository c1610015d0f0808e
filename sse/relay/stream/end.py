"""Why a stream ended, what is reported of it, and the exception that aborts a response."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass


class EndReason(enum.StrEnum):
    """Why an exchange ended; each has exactly one."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    SEND_TIMEOUT = "send_timeout"
    MAX_DURATION = "max_duration"
    DRAINING = "draining"
    CREDENTIAL_EXPIRED = "credential_expired"
    ENDED_BY_OPERATOR = "ended_by_operator"
    STOPPED = "stopped"  #: a client stopped what was recorded
    RECORDER_LOST = "recorder_lost"  #: the process that recorded has gone
    TOO_SLOW = "too_slow"  #: what the client reads next is not kept any more
    UPSTREAM_FAILED = "upstream_failed"  #: no stream began; the response has the reason
    INTERNAL_ERROR = "internal_error"


#: The text of the error event, for people.
MESSAGES = {
    EndReason.UPSTREAM_TRUNCATED: "the upstream's response broke off",
    EndReason.IDLE_TIMEOUT: "the upstream sent nothing for too long",
    EndReason.MAX_DURATION: "the stream was open for as long as it may be",
    EndReason.DRAINING: "the gateway is about to stop",
    EndReason.CREDENTIAL_EXPIRED: "the credential has expired or was revoked",
    EndReason.ENDED_BY_OPERATOR: "an operator of the gateway has ended the stream",
    EndReason.STOPPED: "the stream was stopped",
    EndReason.RECORDER_LOST: "the process that recorded the stream has gone",
    EndReason.TOO_SLOW: "what comes next is not kept any more",
}
#: HTTP statuses that mean the same; of the others, 500.
STATUSES = {EndReason.DRAINING: 503, EndReason.CREDENTIAL_EXPIRED: 401, EndReason.ENDED_BY_OPERATOR: 503}


class Abort(enum.Enum):
    """How a client is shown that a response is not whole."""

    RAISE = enum.auto()  #: the server closes the connection when the body raises, without a last chunk
    CLOSE = enum.auto()  #: the connection is closed here, without a last chunk
    RESET = enum.auto()  #: the connection is reset here, because its close would be the end of the body


@dataclass(frozen=True, kw_only=True)
class StreamEnd:
    """What is reported of a stream when it has ended."""

    reason: EndReason
    status: int
    #: Events that ended; 0 where the response is no event stream.
    events: int
    bytes: int
    #: Seconds from the request to the upstream's head, to the first byte of the body (None: none came), and to the end.
    head: float
    first_byte: float | None
    #: Seconds of the longest wait for the source between two pieces; None where there were not two.
    longest_gap: float | None
    total: float


class StreamAborted(ConnectionError):
    """Ends the response without its last chunk, so that the client's `fetch` rejects.

    To the server it is "connection reset": the one error on which most WSGI servers close the connection at once and
    write neither an error page into the open stream nor a traceback into the log.
    """

    def __init__(self, reason: EndReason) -> None:
        super().__init__(errno.ECONNRESET, f"the stream was aborted: {reason}")
