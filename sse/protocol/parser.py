"""Parse an event stream into whole events (WHATWG HTML, sections 9.2.5 and 9.2.6).

Strategy: an event is a run of lines that a blank line ends. The lines are kept as bytes, and a field is decoded only
when it is read, because most callers pass events on and look at one field at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: 9.2.5: "end-of-line = ( cr lf / cr / lf )".
_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\r|\n)")


class EventTooLong(ValueError):
    """An event, or a line that never ends, is longer than the parser keeps."""


@dataclass(frozen=True, kw_only=True)
class ParsedEvent:
    """The lines of one event, without line ends, and the offset of the byte behind its blank line.

    A run of comments, or of fields without `data`, is one too; a browser dispatches nothing for it.
    """

    lines: tuple[bytes, ...]
    end: int
    #: The last event ID when this event ends: its own, or that of an event before.
    last_event_id: str

    @property
    def data(self) -> str | None:
        """The text of the `data` fields, None if there are none."""
        values = [value for line in self.lines if (value := _field(line, b"data")) is not None]
        return b"\n".join(values).decode("utf-8", "replace") if values else None

    @property
    def type(self) -> str:
        """The event type, "message" if the event names none."""
        # 9.2.6: "If the field name is "event": Set the event type buffer to field value."
        named = [value for line in self.lines if (value := _field(line, b"event")) is not None]
        return (named[-1].decode("utf-8", "replace") if named else "") or "message"

    def encode(self, *, id: str) -> bytes:
        """Return the event with another id in place of its own, each line ended by LF."""
        lines = [line for line in self.lines if _field(line, b"id") is None]
        return b"\n".join([*lines, b"id: " + id.encode(), b"", b""])


class EventParser:
    """Takes the bytes of an event stream, split anywhere, and returns the events that they complete.

    :param offset: position of the first byte that will be fed, in the whole stream.
    :param max_event: bytes of the longest event that is kept.
    """

    def __init__(self, *, offset: int = 0, max_event: int = 4 * 1024 * 1024) -> None:
        #: Position behind the last line that ended.
        self.offset = offset
        self._max_event = max_event
        self._lines: list[bytes] = []
        self._size = 0
        self._buffer = b""
        self._last_event_id = ""
        # 9.2.5: "stream = [ bom ] *event": only the first bytes of all may be the mark.
        self._may_be_mark = offset == 0
        # Whether the last line ended with a CR, whose LF may be the next byte.
        self._after_cr = False

    @property
    def is_between_events(self) -> bool:
        """Whether everything that was fed belongs to an event that has ended."""
        return not (self._lines or self._buffer)

    def feed(self, piece: bytes) -> list[ParsedEvent]:
        """Return the events that end within this piece.

        :raises EventTooLong: if an event grows beyond `max_event`.
        """
        if not piece:
            return []
        data = self._buffer + piece
        if self._may_be_mark:
            if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
                self._buffer = data
                return []
            self._may_be_mark = False
            data = self._skip(data, _BYTE_ORDER_MARK)
        if self._after_cr and data:
            self._after_cr = False
            data = self._skip(data, b"\n")
        return self._split(data)

    def _skip(self, data: bytes, prefix: bytes) -> bytes:
        rest = data.removeprefix(prefix)
        self.offset += len(data) - len(rest)
        return rest

    def _split(self, data: bytes) -> list[ParsedEvent]:
        events, start, at = [], self.offset, 0
        for match in _LINE.finditer(data):
            at = match.end()
            self.offset = start + at
            if match[1]:
                self._lines.append(match[1])
                self._size += len(match[1])
            elif self._lines:
                events.append(self._take())
        self._buffer = data[at:]
        self._after_cr = data.endswith(b"\r")
        if self._size + len(self._buffer) > self._max_event:
            raise EventTooLong(f"an event is longer than {self._max_event} bytes")
        return events

    def _take(self) -> ParsedEvent:
        lines, self._lines, self._size = tuple(self._lines), [], 0
        for line in lines:
            id_ = _field(line, b"id")
            # 9.2.6: "If the field value does not contain U+0000 NULL, then set the last event ID buffer".
            if id_ is not None and b"\0" not in id_:
                self._last_event_id = id_.decode("utf-8", "replace")
        return ParsedEvent(lines=lines, end=self.offset, last_event_id=self._last_event_id)


def _field(line: bytes, name: bytes) -> bytes | None:
    """Return the value if the line is that field."""
    if not line.startswith(name):
        return None
    rest = line[len(name) :]
    if not rest:
        return b""
    # 9.2.6: "If value starts with a U+0020 SPACE character, remove it from value."
    return rest[1:].removeprefix(b" ") if rest.startswith(b":") else None
