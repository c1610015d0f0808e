"""How long the body of an upstream's answer is, and what is in it when it comes in chunks (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

#: Bytes of a chunk-size line with its extensions; h11 and nginx stop in the same region.
MAX_SIZE_LINE = 4096
#: Bytes of the trailer section; nothing in it is passed on.
MAX_TRAILERS = 16384

_CRLF = b"\r\n"
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
# 7.1: "chunk-size = 1*HEXDIG" and "The recipient MUST anticipate potentially large hexadecimal numerals": 16 digits are
# 64 bits. 7.1.1: "chunk-ext = *( BWS ";" BWS chunk-ext-name [...])", of which only the characters are looked at.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
# 7.1.2: "trailer-section = *( field-line CRLF )", here each line with the CRLF that stands before it.
_TRAILERS = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*)*")


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Where the body ends: there is none, after `length` bytes, after the last chunk, or with the connection.

    :param length: bytes; 0 unless `kind` is "length".
    :param reusable: nothing in the framing speaks against another request on the connection.
    """

    kind: Literal["none", "length", "chunked", "close"]
    length: int = 0
    reusable: bool = True


def parse_framing(pairs: Iterable[tuple[str, str]], *, method: str, status: int) -> Framing:
    """Return how the answer to a request is framed, by the rules of RFC 9112, section 6.3.

    :param pairs: the answer's fields, repeated ones apart.
    :param method: of the request that is answered.
    :raises ValueError: the fields contradict each other, or name a coding other than `chunked`.
    """
    codings, lengths = [], []
    for name, value in pairs:
        match name.lower():
            case "transfer-encoding":
                codings += _members(value)
            case "content-length":
                lengths += _members(value)
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        raise ValueError("the transfer coding of the answer is not exactly chunked")
    length = _parse_length(lengths)
    # "Any response to a HEAD request and any response with a 1xx, 204, or 304 status code is always terminated by the
    # first empty line after the header fields". A 204 that announces a body all the same may yet send it.
    if method == "HEAD" or status < 200 or status in (204, 304):
        return Framing(kind="none", reusable=status != 204 or not (codings or length))
    # "If a message is received with both a Transfer-Encoding and a Content-Length header field, the Transfer-Encoding
    # overrides the Content-Length": 6.1 then wants the connection closed after the answer.
    if codings:
        return Framing(kind="chunked", reusable=length is None)
    if length is not None:
        return Framing(kind="length", length=length)
    return Framing(kind="close", reusable=False)


def _members(value: str) -> list[str]:
    return [member.strip(" \t") for member in value.split(",")]


def _parse_length(lengths: list[str]) -> int | None:
    # 6.3: a list is an error "unless the field value can be successfully parsed as a comma-separated list, all values
    # in the list are valid, and all values in the list are the same".
    if not lengths:
        return None
    if len(set(lengths)) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise ValueError("the Content-Length of the answer is invalid")
    return int(lengths[0])


class MalformedChunk(ValueError):
    """The upstream's chunked coding is broken.

    :param payload: what the same data held before the fault, so that what came can be delivered.
    """

    def __init__(self, reason: str, payload: bytes) -> None:
        super().__init__(reason)
        self.payload = payload


class ChunkedDecoder:
    """Takes the chunked transfer coding off (RFC 9112, section 7.1), strictly, and holds no more than an unfinished line.

    Strategy: one loop over what a socket read brought, without a copy but the slices that are delivered. `_left`
    counts the bytes that the chunk in progress still needs, its CRLF included, 0 between chunks; `_tail` is what could
    not be judged yet and goes in front of the next data.
    """

    def __init__(self) -> None:
        self.finished = False
        #: What came after the end; a connection that has some is not to be used again.
        self.rest = b""
        self._left = 0
        self._tail = b""
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """Return the payload in the data, which may be empty.

        :raises MalformedChunk: the coding is broken, or a line of it too long.
        """
        if self._tail:
            data = self._tail + data
            self._tail = b""
        pieces: list[bytes] = []
        try:
            self._decode(data, pieces)
        except ValueError as error:
            raise MalformedChunk(str(error), b"".join(pieces)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _decode(self, data: bytes, pieces: list[bytes]) -> None:
        position, left, size = 0, self._left, len(data)
        if self.finished or self._in_trailers:
            return self._end(data)
        while True:
            if not left:
                line_end = data.find(_CRLF, position, position + MAX_SIZE_LINE)
                if line_end < 0:
                    break
                left = _parse_size_line(data[position:line_end])
                if not left:
                    return self._end(data[line_end:])
                position = line_end + 2
            end = position + left
            if end > size:
                break
            pieces.append(data[position : end - 2])
            if data[end - 2 : end] != _CRLF:
                raise ValueError("no CRLF after the data of a chunk")
            position = end
            left = 0
        self._keep(data, position, left, pieces)

    def _keep(self, data: bytes, position: int, left: int, pieces: list[bytes]) -> None:
        """Deliver what there is of an unfinished chunk, and keep the start of a line."""
        if left > 2:
            pieces.append(data[position : position + left - 2])
            position += len(pieces[-1])
            left -= len(pieces[-1])
        self._left = left
        self._tail = data[position:]
        if left and self._tail not in (b"", b"\r"):
            raise ValueError("no CRLF after the data of a chunk")
        # 2.2 lets a recipient take a bare LF for a line's end; two readers who differ about that are how smuggling works.
        if not left and (len(self._tail) >= MAX_SIZE_LINE or b"\n" in self._tail):
            raise ValueError("a chunk-size line without its end")

    def _end(self, data: bytes) -> None:
        """Read the trailer section; `data` begins with the CRLF of the last chunk's line, so that an end is a blank line."""
        if self.finished:
            self.rest += data
            return
        self._in_trailers = True
        end = data.find(_CRLF + _CRLF, 0, MAX_TRAILERS)
        if end >= 0:
            self.finished = True
            self.rest = data[end + 4 :]
            data = data[:end]
        else:
            self._tail = data
        if len(data) >= MAX_TRAILERS or data.count(b"\n") > data.count(_CRLF):
            raise ValueError("a trailer section without its end")
        if self.finished and not _TRAILERS.fullmatch(data):
            raise ValueError("a malformed trailer section")


@lru_cache(maxsize=512)
def _parse_size_line(line: bytes) -> int:
    """Return how many bytes follow, the CRLF after the data included; 0 for the last chunk.

    Cached: the sizes of a stream's chunks repeat, and a look-up costs a fifth of a match.
    """
    match = _SIZE_LINE.fullmatch(line)
    if match is None:
        raise ValueError("a malformed chunk-size line")
    size = int(match[1], 16)
    return size + 2 if size else 0
