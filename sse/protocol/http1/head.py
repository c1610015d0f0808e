"""The head of an upstream's response, and the head of a request (RFC 9112, sections 2 to 5).

Strategy: one expression defines a whole head, so that nothing in it is skipped or read in a second way. Where a sender
broke a rule and every client reads the result alike, it is read alike here; everything else is refused with its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Fields of a head; http.client stops there too.
MAX_FIELDS = 100
#: Bytes of heads, interim (1xx) ones included, before the final head must be whole.
MAX_HEAD = 64 * 1024

# 2.3: "HTTP-version is case-sensitive", and its first digit decides whether a recipient understands the rest.
_START = b"HTTP/1."
# 2.2: "a recipient MAY recognize a single LF as a line terminator".
_END = re.compile(rb"\n\r?\n")
# 4: "status-line = HTTP-version SP status-code SP [ reason-phrase ]"; some servers send neither reason nor last SP.
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([0-9]{3})(?: [^\r\n\0]*)?\r?\n")
# 5: "field-line = field-name ":" OWS field-value OWS", and 5.1: "A proxy MUST remove any such whitespace [between a
# field name and colon] from a response message". RFC 9110, section 5.5, wants CR, LF and NUL refused; other controls
# are checked where fields are passed on.
_FIELD_LINE = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++[ \t]*+:[^\r\n\0]*+\r?\n"
_FIELD_LINES = re.compile(rf"(?:{_FIELD_LINE})*+")
_FIELD = re.compile(r"([^:\s]+)[ \t]*:([^\r\n]*)")
# 5.2: "obs-fold = OWS CRLF RWS", which "a proxy or gateway" has to "replace [...] with one or more SP octets". There is
# none before the first field, where 2.2 takes it for an attack.
_FOLD = re.compile(r"\r?\n[ \t]+")
# 3: "request-line = method SP request-target SP HTTP-version".
_REQUEST_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+")


class InvalidResponse(ValueError):
    """What an upstream sent is not a response that can be relayed; the text is the cause, without internals."""


@dataclass(kw_only=True, slots=True)
class Head:
    """The head of a response."""

    #: The digit after "HTTP/1.".
    minor: int
    status: int
    #: All fields as they came, repeated ones apart.
    fields: list[tuple[str, str]]

    @property
    def persists(self) -> bool:
        """Whether the upstream keeps the connection open after the response (9.3)."""
        # HTTP/1.0 keeps it only if both sides send `keep-alive`, and 6.1 requires a close after a Transfer-Encoding;
        # few speak it, so no such connection is kept.
        if not self.minor:
            return False
        # "If the "close" connection option is present, the connection will not persist after the current response".
        for name, value in self.fields:
            if name.lower() == "connection" and "close" in value.lower():
                return False
        return True


class HeadReader:
    """Reads the final head of a response from the data of a connection.

    RFC 9110, section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a final
    response". After a 101 the connection speaks another protocol.
    """

    def __init__(self) -> None:
        #: Bytes received so far.
        self.received = 0
        #: Data after the final head: the beginning of the body.
        self.rest = b""
        self._searched = 0

    def feed(self, data: bytes) -> Head | None:
        """Return the final head, None if it has not come whole.

        :raises InvalidResponse: it is malformed, or too large.
        """
        self.received += len(data)
        self.rest += data
        while self.rest and (end := find_head_end(self.rest, self._searched)):
            head, self.rest, self._searched = parse_head(self.rest[:end]), self.rest[end:], 0
            if head.status >= 200 or head.status == 101:
                return head
        if self.received >= MAX_HEAD:
            raise InvalidResponse(f"the head is larger than {MAX_HEAD} bytes")
        # The end is three bytes long at most.
        self._searched = max(len(self.rest) - 2, 0)
        return None


def find_head_end(data: bytes, start: int = 0) -> int:
    """Return the length of the head at the beginning of the data, 0 if it has not come whole.

    :param start: where to search; what is before it was searched already.
    :raises InvalidResponse: no head begins like that.
    """
    if not _START.startswith(data[: len(_START)]):
        raise InvalidResponse("the server does not speak HTTP/1")
    match = _END.search(data, start)
    return match.end() if match else 0


def parse_head(data: bytes) -> Head:
    """Return the content of a whole head.

    :param data: up to and including the blank line.
    :raises InvalidResponse: it is malformed, or has too many fields.
    """
    text = data.decode("latin-1")
    if "\n " in text or "\n\t" in text:
        line, end, lines = text.partition("\n")
        text = line + end + _FOLD.sub(" ", lines)
    start = _STATUS_LINE.match(text)
    if start is None:
        raise InvalidResponse("bad status line")
    status = int(start[2])
    # RFC 9110, section 15: "Values outside the range 100..599 are invalid".
    if not 100 <= status <= 599:
        raise InvalidResponse(f"status {start[2]} is outside 100 to 599")
    lines_end = _FIELD_LINES.match(text, start.end()).end()  # type: ignore[union-attr]  # it matches nothing, too
    if text[lines_end:] not in ("\r\n", "\n"):
        raise InvalidResponse("malformed field line")
    # 5.1: "OWS occurring before the first non-whitespace octet of the field line value, or after the last [...], is
    # excluded".
    fields = [(name, value.strip(" \t")) for name, value in _FIELD.findall(text, start.end())]
    if len(fields) > MAX_FIELDS:
        raise InvalidResponse(f"more than {MAX_FIELDS} fields")
    return Head(minor=int(start[1]), status=status, fields=fields)


def encode_request_head(method: str, request_target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of a request.

    :param fields: names and values that were checked; repeated ones apart.
    :raises ValueError: something would add a line, or is not latin-1.
    """
    line = f"{method} {request_target}"
    if _REQUEST_LINE.fullmatch(line) is None:
        raise ValueError("the method or the target cannot stand in a request line")
    lines = [f"{line} HTTP/1.1", *[f"{name}: {value}" for name, value in fields], "", ""]
    text = "\r\n".join(lines)
    # RFC 9110, section 5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous".
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1 or "\0" in text:
        raise ValueError("a field has a line break")
    return text.encode("latin-1")
