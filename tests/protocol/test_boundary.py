"""Where in an event stream we are: against an oracle that reads byte by byte, under every split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.boundary import Boundary

BOM = b"\xef\xbb\xbf"


def follow(pieces: list[bytes]) -> tuple[bool, int]:
    boundary = Boundary()
    for piece in pieces:
        boundary.feed(piece)
    return boundary.at_boundary, boundary.events


def slow(stream: bytes) -> tuple[bool, int]:
    """The oracle: one byte after the other, in the words of the standard."""
    if stream and BOM.startswith(stream):
        return False, 0
    is_blank, is_within, after_cr, at_boundary, events = True, False, False, True, 0
    for byte in stream.removeprefix(BOM):
        if byte == 10 and after_cr:
            after_cr = False
            continue
        after_cr = byte == 13
        if byte not in (10, 13):
            is_blank, is_within, at_boundary = False, True, False
            continue
        at_boundary = is_blank
        if is_blank and is_within:
            events, is_within = events + 1, False
        is_blank = True
    return at_boundary, events


STREAMS = [
    pytest.param(b"", True, 0, id="nothing-yet"),
    pytest.param(b"data", False, 0, id="inside-a-field-name"),
    pytest.param(b"data: x", False, 0, id="inside-a-line"),
    pytest.param(b"data: x\n", False, 0, id="after-a-line"),
    pytest.param(b"data: x\n\n", True, 1, id="newline-lf"),
    pytest.param(b"data: x\r\r", True, 1, id="newline-cr"),
    pytest.param(b"data: x\r\n\r\n", True, 1, id="newline-crlf"),
    pytest.param(b"data: x\r\n", False, 0, id="crlf-is-one-line-end"),
    pytest.param(b"data: x\r\n\r", True, 1, id="crlf-half-blank-line"),
    pytest.param(b"data: x\n\r", True, 1, id="newline-lf-cr"),
    pytest.param(b"data: x\r\r\n", True, 1, id="newline-cr-crlf"),
    pytest.param(b"data: x\n\r\n", True, 1, id="newline-lf-crlf"),
    pytest.param(b"data: x\r\n\n", True, 1, id="newline-crlf-lf"),
    pytest.param(b"data: x\n\ndata: y\n\n", True, 2, id="two-events"),
    pytest.param(b"data: x\n\ndata: y\n", False, 1, id="inside-the-second-event"),
    pytest.param(b"data: x\n\n\n\n\n\n", True, 1, id="blank-lines-behind-an-event"),
    pytest.param(b"data: x\n\n\n\ndata: y\n\n\n", True, 2, id="blank-lines-between-events"),
    pytest.param(b"\n\n\n", True, 0, id="blank-lines-at-the-start"),
    pytest.param(b"\r", True, 0, id="cr-at-the-start"),
    pytest.param(b":\n", False, 0, id="comment"),
    pytest.param(b":\n\n", True, 1, id="comment-block"),
    pytest.param(b"data: \xe2\x80\xa8\xc2\x85\x0b\x0c\x00\n\n", True, 1, id="no-line-ends-but-cr-and-lf"),
    pytest.param(BOM[:2], False, 0, id="format-bom-half"),
    pytest.param(BOM, False, 0, id="format-bom-alone"),
    pytest.param(BOM + b"\n\n", True, 0, id="format-bom-before-blank-lines"),
    pytest.param(BOM + b"data: x\n\n", True, 1, id="format-bom"),
    pytest.param(BOM + BOM + b"\n\n", True, 1, id="format-bom-2"),
    pytest.param(b"\n" + BOM + b"\n\n", True, 1, id="bom-not-at-the-start"),
    pytest.param(b"\xef\xbb\n\n", True, 1, id="half-a-bom-is-a-line"),
]


@pytest.mark.parametrize(("stream", "at_boundary", "events"), STREAMS)
def test_the_place_is_right_wherever_the_stream_is_split(stream: bytes, at_boundary: bool, events: int) -> None:
    singles = [stream[at : at + 1] for at in range(len(stream))]
    with_empty_ones = [part for single in singles for part in (b"", single)]
    for pieces in (
        [stream],
        singles,
        with_empty_ones,
        *([stream[:at], stream[at:]] for at in range(len(stream) + 1)),
    ):
        assert follow(pieces) == (at_boundary, events)


@pytest.mark.parametrize(("stream", "at_boundary", "events"), STREAMS)
def test_the_oracle_is_right_about_the_table(stream: bytes, at_boundary: bool, events: int) -> None:
    assert slow(stream) == (at_boundary, events)


_pieces = st.lists(
    st.one_of(
        st.sampled_from([b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\n\n\n\n", b"data: x\n\n", b"a\r\n\r\n", b"\xef", BOM]),
        st.lists(st.sampled_from([b"\n", b"\r", b"x", b"\xbb", b"\xbf"]), max_size=12).map(b"".join),
    ),
    max_size=12,
)


@given(_pieces, st.booleans())
def test_every_stream_is_followed_as_the_oracle_does(pieces: list[bytes], bom: bool) -> None:
    boundary, sent = Boundary(), b""
    for piece in [BOM, *pieces] if bom else pieces:
        boundary.feed(piece)
        sent += piece
        assert (boundary.at_boundary, boundary.events) == slow(sent)


def test_nothing_of_a_long_line_is_held() -> None:
    boundary = Boundary()
    boundary.feed(b"x" * 5_000_000)
    boundary.feed(b"\r" + b"y" * 5_000_000)
    assert all(len(value) <= 3 for value in vars(boundary).values() if isinstance(value, bytes))
