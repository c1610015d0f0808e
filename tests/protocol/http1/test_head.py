"""The head of a response: what is one, what is none, and what cannot be sent as one."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.http1.head import (
    MAX_FIELDS,
    MAX_HEAD,
    Head,
    HeadReader,
    InvalidResponse,
    encode_request_head,
    find_head_end,
    parse_head,
)

Pairs = list[tuple[str, str]]

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("lines", "pairs"),
    [
        pytest.param(b"", [], id="no-field"),
        pytest.param(b"A: b\r\n", [("A", "b")], id="one-field"),
        pytest.param(b"A:b\r\n", [("A", "b")], id="no-space"),
        pytest.param(b"A: \t b c \t\r\n", [("A", "b c")], id="whitespace-around"),
        pytest.param(b"A:\r\nB: \r\n", [("A", ""), ("B", "")], id="empty-values"),
        pytest.param(b"A: b:c\r\n", [("A", "b:c")], id="colon-in-value"),
        pytest.param(b"A: 1\r\na: 2\r\n", [("A", "1"), ("a", "2")], id="repeated-stay-apart"),
        pytest.param(b"A: \xe9\r\n", [("A", "\xe9")], id="obs-text"),
        pytest.param(b"A: \x01\r\n", [("A", "\x01")], id="another-control"),
        pytest.param(b"A: b\nC: d\n", [("A", "b"), ("C", "d")], id="bare-lf"),
        pytest.param(b"A : b\r\n", [("A", "b")], id="space-before-colon"),
        pytest.param(b"A \t : b:c\r\nB: d\r\n", [("A", "b:c"), ("B", "d")], id="blanks-before-colon"),
        pytest.param(b"A: b\r\n c\r\n\td\r\n", [("A", "b c d")], id="folded"),
        pytest.param(b"A: b\r\n C: d\r\n", [("A", "b C: d")], id="folded-like-a-field"),
        pytest.param(b"!#$%&'*+-.^_`|~: x\r\n", [("!#$%&'*+-.^_`|~", "x")], id="name-token"),
        pytest.param(b"A: b\r\n" * MAX_FIELDS, [("A", "b")] * MAX_FIELDS, id="as-many-as-may-be"),
    ],
)
def test_fields_are_read_as_they_came(lines: bytes, pairs: Pairs) -> None:
    data = OK + lines + b"\r\n"
    assert find_head_end(data + b"body") == len(data)
    assert parse_head(data) == Head(minor=1, status=200, fields=pairs)


@pytest.mark.parametrize(
    ("line", "minor", "status"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n", 1, 200, id="usual"),
        pytest.param(b"HTTP/1.0 200 OK\r\n", 0, 200, id="1.0"),
        pytest.param(b"HTTP/1.9 200 OK\r\n", 9, 200, id="1.9"),
        pytest.param(b"HTTP/1.1 404 \r\n", 1, 404, id="no-reason"),
        pytest.param(b"HTTP/1.1 404\r\n", 1, 404, id="no-reason-no-space"),
        pytest.param(b"HTTP/1.1 500 a  b\t\xe9 \r\n", 1, 500, id="odd-reason"),
        pytest.param(b"HTTP/1.1 100 Continue\n", 1, 100, id="bare-lf"),
        pytest.param(b"HTTP/1.1 599 Odd\r\n", 1, 599, id="largest"),
    ],
)
def test_a_status_line_is_read(line: bytes, minor: int, status: int) -> None:
    assert parse_head(line + b"\r\n") == Head(minor=minor, status=status, fields=[])


MALFORMED = [
    pytest.param(b"\r\n", id="nothing"),
    pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", id="another-version"),
    pytest.param(b"HTTP/1.10 200 OK\r\n\r\n", id="version-two-digits"),
    pytest.param(b"http/1.1 200 OK\r\n\r\n", id="version-lower-case"),
    pytest.param(b"ICY 200 OK\r\n\r\n", id="icy"),
    pytest.param(b" HTTP/1.1 200 OK\r\n\r\n", id="space-before"),
    pytest.param(b"\r\nHTTP/1.1 200 OK\r\n\r\n", id="line-before"),
    pytest.param(b"HTTP/1.1\r\n\r\n", id="no-status"),
    pytest.param(b"HTTP/1.1 99 Odd\r\n\r\n", id="status-99"),
    pytest.param(b"HTTP/1.1 099 Odd\r\n\r\n", id="status-099"),
    pytest.param(b"HTTP/1.1 600 Odd\r\n\r\n", id="status-600"),
    pytest.param(b"HTTP/1.1 999 Odd\r\n\r\n", id="status-999"),
    pytest.param(b"HTTP/1.1 2000 Odd\r\n\r\n", id="status-four-digits"),
    pytest.param(b"HTTP/1.1 +200 OK\r\n\r\n", id="status-signed"),
    pytest.param(b"HTTP/1.1 2_0 OK\r\n\r\n", id="status-underscore"),
    pytest.param(b"HTTP/1.1 \xb2\xb3\xb9 OK\r\n\r\n", id="status-other-digits"),
    pytest.param(b"HTTP/1.1 OK 200\r\n\r\n", id="status-no-number"),
    pytest.param(b"HTTP/1.1  200 OK\r\n\r\n", id="two-spaces"),
    pytest.param(b"HTTP/1.1\t200 OK\r\n\r\n", id="tab"),
    pytest.param(b"HTTP/1.1 200 O\rK\r\n\r\n", id="reason-bare-cr"),
    pytest.param(b"HTTP/1.1 200 O\0K\r\n\r\n", id="reason-nul"),
    pytest.param(OK + b"no colon\r\n\r\n", id="no-colon"),
    pytest.param(OK + b"From a sender\r\nA: b\r\n\r\n", id="envelope-line"),
    pytest.param(OK + b": b\r\n\r\n", id="no-name"),
    pytest.param(OK + b" : b\r\n\r\n", id="blank-for-a-name"),
    pytest.param(OK + b"A\x0b: b\r\n\r\n", id="vertical-tab-before-colon"),
    pytest.param(OK + b"A B: b\r\n\r\n", id="space-in-name"),
    pytest.param(OK + b"\xc4: b\r\n\r\n", id="name-obs-text"),
    pytest.param(OK + b"A(b): c\r\n\r\n", id="name-no-token"),
    pytest.param(OK + b" A: b\r\n\r\n", id="folded-first-line"),
    pytest.param(OK + b" \r\nA: b\r\n\r\n", id="blank-first-line"),
    pytest.param(OK + b"A: b\rC: d\r\n\r\n", id="bare-cr"),
    pytest.param(OK + b"A: b\r\r\n\r\n", id="two-crs"),
    pytest.param(OK + b"A: b\r\r\n c\r\n\r\n", id="two-crs-folded"),
    pytest.param(OK + b"A: b\0c\r\n\r\n", id="nul"),
    pytest.param(OK + b"A: b\r\n", id="no-end"),
    pytest.param(OK + b"A: b\r\n\r\nC: d\r\n\r\n", id="two-ends"),
    pytest.param(OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", id="too-many-fields"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_head_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_head(data)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n"])
def test_the_end_is_found_wherever_the_head_is_split(end: bytes) -> None:
    data = b"HTTP/1.1 200 OK\r\nA: b" + end
    for cut in range(len(data)):
        assert find_head_end(data[:cut]) == 0
        assert find_head_end(data + b"\r\n\r\n", max(cut - 2, 0)) == len(data)


@pytest.mark.parametrize("data", [b"S", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/2", b"\r", b"HTTP/1 200", b"\x15\x03\x03"])
def test_what_begins_like_no_head_is_not_waited_for(data: bytes) -> None:
    with pytest.raises(ValueError):
        find_head_end(data)


@pytest.mark.parametrize("value", [" " * 65_000 + "x", "x" * 65_000 + "\0", "\r\n x" * 16_000, " \r\n" * 16_000 + "x"])
def test_no_head_takes_long(value: str) -> None:
    """An expression that tries every way to split a run of blanks stops the whole process."""
    try:
        parse_head(OK + b"A: b\r\n" * 50 + f"A:{value}\r\n\r\n".encode())
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("minor", "pairs", "persists"),
    [
        pytest.param(1, [], True, id="1.1"),
        pytest.param(1, [("Connection", "keep-alive")], True, id="keep-alive"),
        pytest.param(1, [("connection", "Close")], False, id="close"),
        pytest.param(1, [("Connection", "keep-alive"), ("Connection", "x, close")], False, id="close-in-the-second"),
        pytest.param(0, [], False, id="1.0"),
        pytest.param(0, [("Connection", "keep-alive")], False, id="1.0-keep-alive"),
    ],
)
def test_a_connection_persists(minor: int, pairs: Pairs, persists: bool) -> None:
    assert Head(minor=minor, status=200, fields=pairs).persists is persists


names = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,9}", fullmatch=True)
values = st.from_regex(rb"[\t\x20-\x7e\x80-\xff]{0,9}", fullmatch=True)


@given(st.lists(st.tuples(names, values), max_size=9), st.integers(200, 599))
def test_another_reader_finds_the_same(pairs: list[tuple[bytes, bytes]], status: int) -> None:
    data = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%s: %s\r\n" % pair for pair in pairs) + b"\r\n"
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.receive_data(data)
    try:
        other = connection.next_event()
    except h11.RemoteProtocolError:
        # It looks at what some fields mean, which is not the head's business here.
        return
    assert isinstance(other, h11.Response)
    found = parse_head(data)
    assert found.status == other.status_code
    assert [(name.lower().encode(), value.encode("latin-1")) for name, value in found.fields] == list(other.headers)


def test_a_request_is_written_as_it_is() -> None:
    head = encode_request_head("GET", "/a%2Fb?c=%\\", [("Host", "a"), ("X", "caf\xe9"), ("x", "")])
    assert head == b"GET /a%2Fb?c=%\\ HTTP/1.1\r\nHost: a\r\nX: caf\xe9\r\nx: \r\n\r\n"


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c", "a\rb", "a\0b", "\N{EURO SIGN}"])
@pytest.mark.parametrize("at", [0, 1])
def test_what_would_be_another_field_is_not_written(value: str, at: int) -> None:
    pairs = [("A", "b"), ("C", "d")]
    pairs[at] = ("X", value)
    with pytest.raises(ValueError):
        encode_request_head("GET", "/", pairs)


@pytest.mark.parametrize(
    ("method", "target"), [("GET /", "/"), ("GET", "/ x"), ("GET", "/\r\nA: b"), ("", "/"), ("GET", ""), ("GET", "/ä")]
)
def test_what_would_be_another_request_line_is_not_written(method: str, target: str) -> None:
    with pytest.raises(ValueError):
        encode_request_head(method, target, [("Host", "a")])


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


@pytest.mark.parametrize("before", [b"", INTERIM], ids=["final", "interim-first"])
def test_the_reader_finds_the_final_head_however_it_is_split(before: bytes) -> None:
    data = before + OK + b"A: b\r\n\r\n"
    for cut in range(len(data)):
        reader = HeadReader()
        assert reader.feed(data[:cut]) is None
        assert reader.feed(data[cut:] + b"body") == Head(minor=1, status=200, fields=[("A", "b")])
        assert (reader.rest, reader.received) == (b"body", len(data) + 4)


def test_a_switch_of_protocols_is_final() -> None:
    head = HeadReader().feed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK + b"\r\n")
    assert head is not None and head.status == 101


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"A: " + b"b" * 500 + b"\r\n"])
def test_the_reader_ends_at_its_bound(piece: bytes) -> None:
    """An upstream that sent 100 Continue for ever was read for ever."""
    reader = HeadReader()
    reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n" if piece.startswith(b"H") else OK)
    with pytest.raises(InvalidResponse, match="larger"):
        for _ in range(MAX_HEAD // len(piece) + 1):
            assert reader.feed(piece) is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"HTTP/1.1 OK\r\n\r\n", "bad status line"),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "status 999"),
        (OK + b"no colon\r\n\r\n", "malformed field line"),
        (OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", "more than 100 fields"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
    ],
)
def test_a_refused_head_names_its_cause(data: bytes, cause: str) -> None:
    with pytest.raises(InvalidResponse, match=cause):
        HeadReader().feed(data)
