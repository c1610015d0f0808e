"""Every event stream gives the same events however its bytes are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.parser import EventParser, EventTooLong, ParsedEvent

#: Each stream and what a browser dispatches for it: (type, data, last event ID); data None dispatches nothing.
CASES = [
    pytest.param(b"data: a\n\n", [("message", "a", "")], id="format-data"),
    pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [("message", "a", ""), ("message", "b", "")], id="format-crlf"),
    pytest.param(b"data: a\r\rdata: b\r\r", [("message", "a", ""), ("message", "b", "")], id="format-cr"),
    pytest.param(b"data:a\r\n\rdata:b\n\r\n", [("message", "a", ""), ("message", "b", "")], id="format-newlines"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")], id="format-bom"),
    pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("message", None, ""), ("message", "b", "")],
                 id="format-bom-2"),
    pytest.param(b"data\ndata\n\n", [("message", "\n", "")], id="format-field-data"),
    pytest.param(b"data:  a\ndata:\n\n", [("message", " a\n", "")], id="format-leading-space"),
    pytest.param(b"event: add\ndata: 1\n\ndata: 2\n\n", [("add", "1", ""), ("message", "2", "")], id="format-event"),
    pytest.param(b"event:\ndata: 1\n\n", [("message", "1", "")], id="format-field-event-empty"),
    pytest.param(b"id: 7\ndata: 1\n\ndata: 2\n\nid\ndata: 3\n\n",
                 [("message", "1", "7"), ("message", "2", "7"), ("message", "3", "")], id="format-field-id"),
    pytest.param(b"id: 7\ndata: 1\n\nid: 8\0\ndata: 2\n\n", [("message", "1", "7"), ("message", "2", "7")],
                 id="format-field-id-null"),
    pytest.param(b": comment\n\nid: 1\n\ndata: a\n\n", [("message", None, ""), ("message", None, "1"),
                 ("message", "a", "1")], id="format-comments"),
    pytest.param(b"identity: 1\ndatas: 2\ndata: a\n\n", [("message", "a", "")], id="format-field-unknown"),
    pytest.param("data: 流\n\ndata: \U0001f30a\u2028\x85\n\n".encode(),
                 [("message", "流", ""), ("message", "\U0001f30a\u2028\x85", "")], id="format-utf-8"),
    pytest.param(b"data: \xff\n\n", [("message", "\ufffd", "")], id="format-utf-8-invalid"),
    pytest.param(b"\n\n\r\ndata: a\n\n\n\n", [("message", "a", "")], id="format-blank-lines"),
    pytest.param(b"data: a\n\ndata: b\n", [("message", "a", "")], id="eof-in-event"),
    pytest.param(b"", [], id="empty"),
]  # fmt: skip


def splits(stream: bytes) -> Iterator[list[bytes]]:
    """Yield the stream whole, byte by byte, and cut in two at every place."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    yield from ([stream[:at], stream[at:]] for at in range(len(stream) + 1))


def parse(pieces: list[bytes], **options: int) -> list[ParsedEvent]:
    parser = EventParser(**options)
    return [event for piece in pieces for event in parser.feed(piece)]


def seen(events: list[ParsedEvent]) -> list[tuple[str, str | None, str]]:
    return [(event.type, event.data, event.last_event_id) for event in events]


@pytest.mark.parametrize(("stream", "expected"), CASES)
def test_every_split_gives_the_same_events(stream: bytes, expected: list[tuple[str, str | None, str]]) -> None:
    for pieces in splits(stream):
        assert seen(parse(pieces)) == expected, pieces


@pytest.mark.parametrize(("stream", "expected"), CASES)
def test_the_rest_of_the_stream_begins_at_each_offset(
    stream: bytes, expected: list[tuple[str, str | None, str]]
) -> None:
    for pieces in splits(stream):
        for index, event in enumerate(parse(pieces)):
            rest = parse([stream[event.end :]], offset=event.end)
            assert [e.lines for e in rest] == [e.lines for e in parse([stream])][index + 1 :], pieces


@pytest.mark.parametrize(("stream", "expected"), CASES)
def test_an_event_is_complete_with_its_last_byte(stream: bytes, expected: list[tuple[str, str | None, str]]) -> None:
    """A blank line that ends with CR dispatches at once; its LF may come a minute later."""
    for event in parse([stream[at : at + 1] for at in range(len(stream))]):
        assert len(parse([stream[: event.end]])) > len(parse([stream[: event.end - 1]]))


def test_another_id_takes_the_place_of_the_events_own() -> None:
    (event,) = parse([b": note\r\nid: 5\r\nevent: add\r\ndata: a\r\nid\r\nidle: x\r\n\r\n"])
    assert event.encode(id="0042") == b": note\nevent: add\ndata: a\nidle: x\nid: 0042\n\n"


def test_a_line_that_never_ends_is_refused() -> None:
    parser = EventParser(max_event=1000)
    parser.feed(b"data: " + b"x" * 990)
    with pytest.raises(EventTooLong, match="longer than 1000 bytes"):
        parser.feed(b"x" * 10)


def test_an_event_of_many_lines_is_refused() -> None:
    parser = EventParser(max_event=1000)
    with pytest.raises(EventTooLong):
        parser.feed(b"data: 12345678\n" * 100)


def test_what_was_fed_is_an_event_or_begins_one() -> None:
    parser = EventParser()
    assert parser.is_between_events
    parser.feed(b"data: a\n")
    assert not parser.is_between_events
    parser.feed(b"\n")
    assert parser.is_between_events
    parser.feed(b":")
    assert not parser.is_between_events


PARTS = [b"data: a", b"id: 1", b":", b"", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf"]


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.data())
def test_any_splits_give_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event.lines for event in parse(pieces)] == [event.lines for event in parse([stream])]
