"""Events and comments as bytes; what the format cannot carry is refused. Cases named after web-platform-tests."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.boundary import Boundary
from sse.protocol.event import ServerSentEvent, encode_comment


def dispatch(stream: bytes) -> tuple[str | None, str | None, str | None, int | None]:
    """Read one event as WHATWG HTML, section 9.2.6 says. Data, event type, last event ID, reconnection time."""
    lines = re.split("\r\n|\r|\n", stream.decode())
    assert lines[-2:] == ["", ""]
    data: list[str] = []
    fields: dict[str, str] = {}
    for line in lines[:-2]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        else:
            fields[name] = value
    retry = fields.get("retry")
    return "\n".join(data) if data else None, fields.get("event"), fields.get("id"), int(retry) if retry else None


@pytest.mark.parametrize(
    ("event", "stream"),
    [
        pytest.param({"data": "x"}, b"data: x\n\n", id="format-field-data"),
        pytest.param({"data": ""}, b"data: \n\n", id="format-field-data-empty"),
        pytest.param({"data": "Message 0", "id": "1"}, b"id: 1\ndata: Message 0\n\n", id="the-seed"),
        pytest.param({"data": "a\nb\rc\r\nd"}, b"data: a\ndata: b\ndata: c\ndata: d\n\n", id="format-newlines"),
        pytest.param({"data": "a\n"}, b"data: a\ndata: \n\n", id="format-newline-at-the-end"),
        pytest.param({"data": "\r\n\n"}, b"data: \ndata: \ndata: \n\n", id="format-only-newlines"),
        pytest.param({"data": "\u2028\x85\x0b\x0c\x1c"}, "data: \u2028\x85\x0b\x0c\x1c\n\n".encode(), id="no-newlines"),
        pytest.param({"data": " x"}, b"data:  x\n\n", id="format-leading-space"),
        pytest.param({"data": ":x\0"}, b"data: :x\0\n\n", id="format-null-character"),
        pytest.param({"data": "你好"}, b"data: \xe4\xbd\xa0\xe5\xa5\xbd\n\n", id="format-utf-8"),
        pytest.param({"event": "tick", "data": "x"}, b"event: tick\ndata: x\n\n", id="format-field-event"),
        pytest.param({"event": ""}, b"event: \n\n", id="format-field-event-empty"),
        pytest.param({"id": ""}, b"id: \n\n", id="format-field-id-empty"),
        pytest.param({"retry": 0}, b"retry: 0\n\n", id="format-field-retry-zero"),
        pytest.param(
            {"data": "x", "event": "e", "id": "i", "retry": 3000},
            b"event: e\nid: i\nretry: 3000\ndata: x\n\n",
            id="all-fields-data-last",
        ),
    ],
)
def test_an_event_is_encoded_as_the_standard_reads_it(event: dict[str, Any], stream: bytes) -> None:
    assert ServerSentEvent(**event).encode() == stream


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({}, id="no-field"),
        pytest.param({"event": "a\nb"}, id="event-lf"),
        pytest.param({"event": "a\rb"}, id="event-cr"),
        pytest.param({"event": "a\r\ndata: b"}, id="event-injection"),
        pytest.param({"id": "1\n"}, id="id-lf"),
        pytest.param({"id": "\r1"}, id="id-cr"),
        pytest.param({"id": "1\0"}, id="format-field-id-null"),
        pytest.param({"retry": -1}, id="retry-negative"),
        pytest.param({"retry": True}, id="retry-bool"),
    ],
)
def test_what_the_format_cannot_carry_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ServerSentEvent(**event)


def test_a_lone_surrogate_is_refused_when_it_is_encoded() -> None:
    with pytest.raises(ValueError):
        ServerSentEvent(data="\ud800").encode()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("", b":\n", id="heartbeat"),
        pytest.param("ping", b": ping\n", id="text"),
        pytest.param("\u2028", b": \xe2\x80\xa8\n", id="line-separator"),
    ],
)
def test_a_comment_is_one_line_and_ends_no_event(text: str, line: bytes) -> None:
    assert encode_comment(text) == line


@pytest.mark.parametrize("text", ["a\nb", "a\rdata: b", "\r\n"])
def test_a_comment_with_a_line_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        encode_comment(text)


_texts = st.text(st.characters(exclude_categories=["Cs"]))
_lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


@given(st.none() | _texts, st.none() | _lines, st.none() | _lines, st.integers(0))
def test_what_a_reader_dispatches_is_what_was_encoded(
    data: str | None, event: str | None, id: str | None, retry: int
) -> None:
    stream = ServerSentEvent(data=data, event=event, id=id, retry=retry).encode()
    normal = None if data is None else re.sub("\r\n|\r", "\n", data)
    assert dispatch(stream) == (normal, event, id, retry)


@given(st.lists(_texts, min_size=1, max_size=4))
def test_each_event_ends_at_a_boundary(texts: list[str]) -> None:
    boundary = Boundary()
    for number, text in enumerate(texts, start=1):
        boundary.feed(ServerSentEvent(data=text).encode())
        assert (boundary.at_boundary, boundary.events) == (True, number)
