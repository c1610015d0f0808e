"""How long the body of an upstream's response is, and what it is if it comes in chunks (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .head import InvalidResponse

#: Bytes of a chunk-size line with its extensions; h11 and nginx stop in the same region.
MAX_SIZE_LINE = 4096
#: Bytes of the trailer section; nothing in it is passed on.
MAX_TRAILERS = 16384

#: Bytes of a chunk-size line that is remembered: three digits, so that there are few. Where each event is a chunk,
#: reading the line takes longer than all else of the framing.
MAX_KNOWN_LINE = len(b"fff\r\n")
_KNOWN_LINES: dict[bytes, int] = {}

_CRLF = b"\r\n"
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
# 7.1: "chunk-size = 1*HEXDIG" and "The recipient MUST anticipate potentially large hexadecimal numerals": 16 digits are
# 64 bits. 7.1.1: "chunk-ext = *( BWS ";" BWS chunk-ext-name [...])", of which only the characters are checked. Some
# servers pad the size with blanks, which every browser skips.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
# 7.1.2: "trailer-section = *( field-line CRLF )", here each line with the CRLF that stands before it.
_TRAILERS = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*+:[\t\x20-\x7e\x80-\xff]*)*")


def parse_framing(pairs: Iterable[tuple[str, str]], *, method: str, status: int) -> tuple[Decoder, bool]:
    """Return what takes the framing off a response's body, by the rules of RFC 9112, section 6.3.

    The second item is whether nothing in the framing speaks against another request on the connection.

    :param pairs: the response's fields, repeated ones apart.
    :param method: of the request.
    :raises InvalidResponse: the fields contradict each other, or name a coding other than `chunked`.
    """
    codings, lengths = [], []
    for name, value in pairs:
        match name.lower():
            case "transfer-encoding":
                codings += _members(value)
            case "content-length":
                lengths += _members(value)
    is_chunked = _is_chunked(codings)
    length = _parse_length(lengths)
    # "Any response to a HEAD request and any response with a 1xx, 204, or 304 status code is always terminated by the
    # first empty line after the header fields". A 204 that announces a body all the same may yet send it.
    if method == "HEAD" or status < 200 or status in (204, 304):
        return PlainDecoder(0), status != 204 or not (is_chunked or length)
    # "If a message is received with both a Transfer-Encoding and a Content-Length header field, the Transfer-Encoding
    # overrides the Content-Length": 6.1 then wants the connection closed after the response.
    if is_chunked:
        return ChunkedDecoder(), length is None
    return PlainDecoder(length), length is not None


def _members(value: str) -> list[str]:
    return [member.strip(" \t") for member in value.split(",")]


def _is_chunked(codings: list[str]) -> bool:
    # RFC 2616, section 3.6: "identity" is no coding at all; RFC 9112 dropped it, and some servers did not. A field that
    # a proxy has repeated means the same twice: 7.1 forbids to apply `chunked` more than once.
    names = set(map(str.lower, codings)) - {"identity"}
    if names - {"chunked"}:
        raise InvalidResponse(f"unsupported Transfer-Encoding {', '.join(codings)[:64]!r}")
    return bool(names)


def _parse_length(lengths: list[str]) -> int | None:
    # 6.3: a list is an error "unless the field value can be successfully parsed as a comma-separated list, all values
    # in the list are valid, and all values in the list are the same".
    if not lengths:
        return None
    if len(set(lengths)) > 1:
        raise InvalidResponse("contradicting Content-Length values")
    if not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise InvalidResponse(f"invalid Content-Length {lengths[0][:32]!r}")
    return int(lengths[0])


class MalformedBody(ValueError):
    """The upstream's body does not match its framing.

    :param payload: what the same data held before the fault, so that what came can be delivered.
    """

    def __init__(self, reason: str, payload: bytes = b"") -> None:
        super().__init__(reason)
        self.payload = payload


class PlainDecoder:
    """A body of so many bytes, or, with None, one that ends with its connection."""

    def __init__(self, length: int | None) -> None:
        #: Whether the body has ended.
        self.finished = length == 0
        #: Data after the end of the body; a connection that has some must not be used again.
        self.rest = b""
        self._left = length

    def feed(self, data: bytes) -> bytes:
        """Return the payload in the data."""
        if self._left is None:
            return data
        payload, self.rest = data[: self._left], data[self._left :]
        self._left -= len(payload)
        self.finished = not self._left
        return payload

    def end(self) -> None:
        """Check that the body may end here, because no more data will come.

        :raises MalformedBody: the body has not ended.
        """
        if self._left is not None:
            raise MalformedBody("the body is shorter than its Content-Length")
        self.finished = True


class ChunkedDecoder:
    """Takes the chunked transfer coding off, strictly (RFC 9112, section 7.1); holds no more than an unfinished line.

    Strategy: one loop over what a socket read brought. `_left` counts the bytes that the chunk in progress still needs,
    its CRLF included, 0 between chunks; `_tail` is what cannot be judged yet and goes in front of the next data.
    """

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""
        self._left = 0
        self._tail = b""
        # Bytes of the last chunk-size line; at first those of the usual ones.
        self._line_length = len(b"ff\r\n")
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """Return the payload in the data, which may be empty.

        :raises MalformedBody: the framing is broken.
        """
        if self._tail:
            data, self._tail = self._tail + data, b""
        pieces: list[bytes] = []
        try:
            if self._in_trailers:
                self._end(data)
            else:
                self._decode(data, pieces)
        except ValueError as error:
            raise MalformedBody(str(error), b"".join(pieces)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        """Raise MalformedBody: without its last chunk, the body has not ended."""
        raise MalformedBody("the last chunk is missing")

    def _decode(self, data: bytes, pieces: list[bytes]) -> None:
        position, left, size, length = 0, self._left, len(data), self._line_length
        while position < size:
            if not left:
                # Most lines are as long as the one before, and were read before.
                line = data[position : position + length]
                left = _KNOWN_LINES.get(line, 0)
                if not left:
                    line_end = data.find(b"\n", position, position + MAX_SIZE_LINE) + 1
                    if not line_end:
                        if size - position >= MAX_SIZE_LINE:
                            raise ValueError("a chunk-size line without its end")
                        break
                    line = data[position:line_end]
                    left = _parse_size_line(line)
                    if not left:
                        return self._end(data[line_end - 2 :])
                    self._line_length = length = len(line)
                position += length
            end = position + left
            if end > size:
                break
            pieces.append(data[position : end - 2])
            if data[end - 1] != 10 or data[end - 2] != 13:
                raise ValueError("no CRLF after the data of a chunk")
            position, left = end, 0
        self._left = left
        self._tail = data[position:]
        if left:
            self._deliver_part(pieces)

    def _deliver_part(self, pieces: list[bytes]) -> None:
        """Deliver what there is of an unfinished chunk; of its CRLF there may be the half, which stays."""
        part = self._tail[: self._left - 2]
        pieces.append(part)
        self._left -= len(part)
        self._tail = self._tail[len(part) :]
        if self._tail not in (b"", b"\r"):
            raise ValueError("no CRLF after the data of a chunk")

    def _end(self, data: bytes) -> None:
        """Read the trailer section; `data` begins with the CRLF of the last chunk, so that its end is a blank line."""
        self._in_trailers = True
        if self.finished:
            self.rest += data
            return
        section, end, rest = data.partition(_CRLF + _CRLF)
        if len(section) > MAX_TRAILERS or section.count(b"\n") > section.count(_CRLF):
            raise ValueError("a trailer section without its end")
        if not end:
            self._tail = data
        elif not _TRAILERS.fullmatch(section):
            raise ValueError("a malformed trailer section")
        else:
            self.finished, self.rest = True, rest


#: Takes the framing off a body.
Decoder = PlainDecoder | ChunkedDecoder


def _parse_size_line(line: bytes) -> int:
    """Return how many bytes follow, the CRLF after the data included; 0 for the last chunk."""
    # 2.2 lets a recipient take a bare LF for a line's end; two readers who differ about that are how smuggling works.
    match = _SIZE_LINE.fullmatch(line)
    if match is None:
        raise ValueError("a malformed chunk-size line")
    size = int(match[1], 16)
    chunk = size + 2 if size else 0
    if len(line) <= MAX_KNOWN_LINE:
        _KNOWN_LINES[line] = chunk
    return chunk
