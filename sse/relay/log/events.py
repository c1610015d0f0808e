"""Read a recorded event stream as whole events, each with the position behind it as its id."""

from __future__ import annotations

from collections.abc import Callable

from ...protocol.parser import EventParser, EventTooLong
from ..stream.source import TruncatedBody
from .base import Trimmed
from .ring import Reader

#: Digits of a position: padded, so that positions sort as text too.
DIGITS = 16


def encode_offset(offset: int) -> str:
    """Return a position as it is sent in fields and as the id of an event."""
    return str(offset).zfill(DIGITS)


class EventReader:
    """A source of whole events; an event that the upstream has not finished is not sent.

    :param reader: closed together with this source.
    :param max_event: bytes of the longest event.
    """

    def __init__(self, reader: Reader, *, max_event: int) -> None:
        self._reader = reader
        self._parser = EventParser(offset=reader.offset, max_event=max_event)

    def read(self) -> bytes | None:
        """Return the events that have come, None if none has yet, b"" at the end.

        :raises TruncatedBody: at the end of a recording that is not complete; an EventSource comes back behind it.
        """
        try:
            while piece := self._reader.read():
                events = self._parser.feed(piece)
                if events:
                    return b"".join(event.encode(id=encode_offset(event.end)) for event in events)
        except EventTooLong as error:
            raise Trimmed(self._parser.offset) from error
        except TruncatedBody as error:
            error.event_id = encode_offset(self._reader.offset)
            raise
        return piece

    def wait(self, timeout: float | None) -> None:
        self._reader.wait(timeout)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        return self._reader.subscribe(wake)

    def cancel(self) -> None:
        self._reader.cancel()

    def close(self) -> None:
        self._reader.close()
