"""The head of an upstream's answer, and the fields in the head of a request (RFC 9112, sections 2 to 5).

Strategy: one expression says what a whole head is, so that nothing in it is skipped, repaired or read in a second way.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

#: Fields of a head; http.client stops there too.
MAX_FIELDS = 100

# 2.3: "HTTP-version is case-sensitive", and a recipient knows by the first digit whether it understands the rest.
_START = b"HTTP/1."
# 2.2: "a recipient MAY recognize a single LF as a line terminator".
_END = re.compile(rb"\n\r?\n")
# 4: "status-line = HTTP-version SP status-code SP [ reason-phrase ]"; some servers send neither reason nor last SP.
_STATUS_LINE = r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?"
# 5: "field-line = field-name ":" OWS field-value OWS", and 5.1: "No whitespace is allowed between the field name and
# colon". RFC 9110, section 5.5, wants CR, LF and NUL refused; who passes other controls on looks at them.
_FIELD_LINE = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+"
_HEAD = re.compile(rf"{_STATUS_LINE}\r?\n((?:{_FIELD_LINE}\r?\n)*+)\r?\n")
_FIELD = re.compile(r"([^:\n]+):([^\r\n]*)")
# 5.2: "obs-fold = OWS CRLF RWS", which "a proxy or gateway" has to "replace [...] with one or more SP octets". There is
# none before the first field, where 2.2 takes it for an attack.
_FOLD = re.compile(r"\r?\n[ \t]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The head of an answer."""

    #: The digit after "HTTP/1.".
    minor: int
    status: int
    #: All fields as they came, repeated ones apart.
    fields: list[tuple[str, str]]

    @property
    def persists(self) -> bool:
        """Whether the upstream keeps the connection open after the answer (9.3)."""
        # HTTP/1.0 keeps it only if both sides say so, and 6.1 wants it closed after a Transfer-Encoding there; few
        # speak it, so none of theirs is kept.
        if not self.minor:
            return False
        # "If the "close" connection option is present, the connection will not persist after the current response".
        return "close" not in ",".join([value for name, value in self.fields if name.lower() == "connection"]).lower()


def find_head_end(data: bytes, start: int = 0) -> int:
    """Return how long the head at the beginning of the data is, 0 if it has not come whole.

    :param start: where to search; what is before it was searched already.
    :raises ValueError: no head begins like that.
    """
    if not _START.startswith(data[: len(_START)]):
        raise ValueError("what answers does not speak HTTP/1")
    match = _END.search(data, start)
    return match.end() if match else 0


def parse_head(data: bytes) -> Head:
    """Return what a whole head says.

    :param data: up to and with the blank line.
    :raises ValueError: it is malformed, or has too many fields.
    """
    text = data.decode("latin-1")
    if "\n " in text or "\n\t" in text:
        line, end, lines = text.partition("\n")
        text = line + end + _FOLD.sub(" ", lines)
    match = _HEAD.fullmatch(text)
    if match is None:
        raise ValueError("the head is malformed")
    # 5.1: "OWS occurring before the first non-whitespace octet of the field line value, or after the last [...], is
    # excluded".
    fields = [(name, value.strip(" \t")) for name, value in _FIELD.findall(match[3])]
    if len(fields) > MAX_FIELDS:
        raise ValueError("the head has too many fields")
    return Head(minor=int(match[1]), status=int(match[2]), fields=fields)


def encode_fields(pairs: Collection[tuple[str, str]]) -> bytes:
    """Return the lines of a request's fields, without the last CRLF.

    :param pairs: names and values that were judged to be such; at least one.
    :raises ValueError: a line more than there are fields would come of it, or one is not latin-1.
    """
    lines = "\r\n".join([f"{name}: {value}" for name, value in pairs])
    # RFC 9110, section 5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous".
    if lines.count("\r") != len(pairs) - 1 or lines.count("\n") != len(pairs) - 1 or "\0" in lines:
        raise ValueError("a field has a line break")
    return lines.encode("latin-1")
