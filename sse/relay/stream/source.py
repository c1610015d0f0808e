"""What a pump reads, and what looks on while it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .end import EndReason


class TruncatedBody(Exception):
    """A source ended, or became malformed, before the end of its own framing."""

    reason: EndReason = EndReason.UPSTREAM_TRUNCATED
    #: The id of the error event, so that an EventSource comes back behind it; None for none.
    event_id: str | None = None


class Source(Protocol):
    """Bytes that arrive over time: an upstream's body, an iterable of the site's, a recording, a channel.

    The shape is that of the standard library's raw I/O (`io.RawIOBase.read`).
    """

    def read(self) -> bytes | None:
        """Return what has arrived, None if nothing has yet, b"" at the end; never wait.

        None may come although more has arrived meanwhile: then `wait()` returns, and `wake()` is called, at once. So a
        source that always has bytes gives way to others after each piece.

        :raises TruncatedBody: if the source ended before the end of its own framing.
        """

    def wait(self, timeout: float | None) -> None:
        """Block until `read()` may return something else than None, or for `timeout` seconds (None: for ever)."""

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call `wake()` from the event loop each time `read()` may return something; return what unsubscribes.

        None is returned by a source that can only be waited for: one without an event loop, or an iterable that runs
        in its reader's thread.
        """

    def cancel(self) -> None:
        """End the source now, waking its reader; idempotent, never waits, callable from anywhere."""

    def close(self) -> None:
        """Release what is behind the source; idempotent. It may wait, so it is not called from the event loop."""


class Tap(Protocol):
    """Looks on as bytes pass; never waits, never changes them."""

    def feed(self, piece: bytes, /) -> None:
        """Process a piece that is about to be sent."""

    def finish(self) -> None:
        """Process the end: nothing follows."""
