"""Where in an event stream are we: between two events, or inside one? (WHATWG HTML, section 9.2.5 and 9.2.6)"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

#: A line with its end, or what there is of one.
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANK_LINES = re.compile(rb"\n\n+")
#: The last two bytes after a blank line.
_BLANK = (b"\n\n", b"\n\r")


class Boundary:
    """Follows an event stream that is fed piece by piece, split anywhere.

    Strategy: only line ends matter, so nothing is parsed and nothing is held but the last two bytes. With every line
    end written as LF, a run of two or more of them is a non-blank line's end and the blank lines behind it: one event.
    Most streams have no other line end, and most pieces begin inside a line: for those, counting in C is all.
    """

    def __init__(self) -> None:
        #: Events ended so far: blank lines that end a run of one or more lines that are not blank.
        self.events = 0
        # The last two bytes, line ends as LF but for a CR at the very end, whose LF may follow. At first as if an event
        # had ended: blank lines there end none.
        self._tail = b"\n\n"
        # 9.2.5: "stream = [ bom ] *event". What may yet become the byte order mark; None when that is decided.
        self._head: bytes | None = b""

    @property
    def at_boundary(self) -> bool:
        """Whether nothing was fed yet, or the last byte ended a blank line, and with it an event."""
        return self._tail in _BLANK and not self._head

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the stream into account."""
        if self._head is not None:
            piece = self._without_byte_order_mark(piece)
        if not piece:
            return
        events = piece.count(b"\n\n")
        # Two pairs may be one run, and a first LF belongs to a run that has begun. 13 is CR; to look for b"\r" would
        # take seven times as long.
        if 13 in piece or piece[0] == 10 or (events > 1 and piece.find(b"\n\n\n") >= 0):
            self._feed_any(piece)
            return
        self.events += events
        self._tail = piece[-2:]

    def finish(self) -> None:
        """Do nothing: an event that has begun is not counted (9.2.6: "the incomplete event is not dispatched")."""

    def _feed_any(self, piece: bytes) -> None:
        # "end-of-line = ( cr lf / cr / lf )": the LF after a CR is no line end of its own, also in the next piece.
        lines = (self._tail + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # The run that the kept bytes begin with has been counted when they came.
        self.events += len(_BLANK_LINES.findall(lines)) - (self._tail in _BLANK)
        self._tail = lines[-2:-1] + b"\r" if piece.endswith(b"\r") else lines[-2:]

    def _without_byte_order_mark(self, piece: bytes) -> bytes:
        head = (self._head or b"") + piece
        if _BYTE_ORDER_MARK.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BYTE_ORDER_MARK)


def event_ends(piece: bytes, boundary: Boundary) -> Iterator[int]:
    """Yield the places in a piece behind which no event has begun; the boundary is fed line by line."""
    for line in _LINE.finditer(piece):
        boundary.feed(line[0])
        if boundary.at_boundary:
            yield line.end()


def rest_of_event(piece: bytes, boundary: Boundary) -> bytes:
    """Return what of a piece belongs to the event that has begun, all of it if that does not end there."""
    return piece[: next(event_ends(piece, copy.copy(boundary)), None)]
