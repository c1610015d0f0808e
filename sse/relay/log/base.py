"""A log of bytes that are found by their position: what a recording consists of, wherever it is stored.

One recorder appends; readers in any process take what follows a position. A position is the count of the bytes before
it. A log is stored in memory (`memory.py`) or in Redis (`redis.py`); `log.py` defines what both do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import StreamExpired, TooManyStreams
from ..lease import RETRY_AFTER
from ..stream.end import EndReason
from ..stream.source import TruncatedBody

#: Bytes that one `read()` returns at most: as many as one read of an upstream does.
READ_SIZE = 64 * 1024
#: Seconds for which an expired or erased recording is known to have existed.
TOMBSTONE = 300.0
#: Readers of one recording, on all hosts together.
MAX_READERS = 8

Wake = Callable[[], None]


class Expired(StreamExpired):
    """The recording of that id has expired or was erased.

    :param owner: whose it was.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner


class TooManyReaders(TooManyStreams):
    """The recording has as many readers as it may have."""

    def __init__(self) -> None:
        super().__init__("the stream has as many readers as it may have", retry_after=RETRY_AFTER)


class Trimmed(TruncatedBody):
    """The bytes at a position are not kept any more, or were lost.

    :param start: position of the first byte that is kept.
    """

    reason = EndReason.TOO_SLOW

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


class Interrupted(TruncatedBody):
    """The recording ended before the upstream's body did.

    :param reason: why; never `COMPLETE`.
    """

    def __init__(self, reason: EndReason) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a recording when it begins."""

    #: Name under which the client was admitted.
    owner: str
    #: Name of the upstream, for log lines and metrics.
    upstream: str
    #: The upstream's status, and the fields of its response that clients get.
    status: int
    fields: tuple[tuple[str, str], ...]
    #: Seconds for which it is kept after its end.
    ttl: int
    #: Seconds for which it goes on without any reader.
    leave: float
    #: Key of the claim that it belongs to, "" if there is none.
    claim: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a recording at one moment."""

    header: Header
    #: Position of the first byte that is kept, and of the byte behind the last one.
    start: int
    end: int
    #: How it ended, None if it has not.
    reason: EndReason | None
    #: Which recorder it has, as the store names it.
    generation: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an idempotency key stands for."""

    id: str
    #: Digest of the request.
    fingerprint: str
    #: The process that made the claim, as the store names it.
    process: str = ""
    #: Whether the recording has begun.
    has_begun: bool = False
