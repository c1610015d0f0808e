"""What an event stream is made of: events and comments, as bytes (WHATWG HTML, section 9.2.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# "end-of-line = ( cr lf / cr / lf )"; str.splitlines() would also split at U+2028, U+0085 and more.
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """One event; what the format cannot carry is refused, never repaired.

    :param data: the text a reader gets as `event.data`; its lines may end as they like, they arrive with LF.
    :param event: the event type; None leaves it "message".
    :param id: the last event ID a reader sends when it reconnects; "" makes it forget.
    :param retry: the reconnection time, in milliseconds.
    :raises ValueError: for CR or LF in `event` or `id`, U+0000 in `id`, a negative `retry`, or an event without fields.
    """

    data: str | None = None
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and ("\r" in value or "\n" in value):
                raise ValueError(f"a line end in {name}: {value!r}")
        # 9.2.6: "If the field value does not contain U+0000 NULL, then set the last event ID buffer".
        if self.id is not None and "\0" in self.id:
            raise ValueError(f"U+0000 in id: {self.id!r}")
        # 9.2.6: "If the field value consists of only ASCII digits".
        if self.retry is not None and (isinstance(self.retry, bool) or self.retry < 0):
            raise ValueError(f"retry is no number of milliseconds: {self.retry!r}")
        if self.data is None and self.event is None and self.id is None and self.retry is None:
            raise ValueError("an event without a field")

    def encode(self) -> bytes:
        """Return the event with the blank line that dispatches it, in UTF-8."""
        lines = []
        if self.event is not None:
            lines.append(f"event: {self.event}")
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        if self.data is not None:
            lines += [f"data: {line}" for line in _LINE_END.split(self.data)]
        return "".join(f"{line}\n" for line in [*lines, ""]).encode()


def encode_comment(text: str = "") -> bytes:
    """Return a comment, which readers pass over: one line, without a blank line of its own.

    :raises ValueError: for CR or LF in the text.
    """
    if "\r" in text or "\n" in text:
        raise ValueError(f"a line end in a comment: {text!r}")
    return f":{' ' if text else ''}{text}\n".encode()
