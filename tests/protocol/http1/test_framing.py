"""The framing of an upstream's response: what the rules of RFC 9112 say, and chunks cut in every place."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.http1.framing import (
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    ChunkedDecoder,
    MalformedBody,
    parse_framing,
)

Pairs = list[tuple[str, str]]


def encode_chunk(data: bytes, *, form: bytes = b"%x", extension: bytes = b"") -> bytes:
    return form % len(data) + extension + b"\r\n" + data + b"\r\n"


def feed_all(pieces: list[bytes]) -> tuple[bytes, ChunkedDecoder, bool]:
    """Return what came out, the decoder, and whether it found a fault."""
    decoder, out = ChunkedDecoder(), b""
    for number, piece in enumerate(pieces):
        try:
            out += decoder.feed(piece)
        except MalformedBody as error:
            return out + error.payload, decoder, True
        if decoder.finished:
            decoder.rest += b"".join(pieces[number + 1 :])
            break
    return out, decoder, False


def every_single_byte(wire: bytes) -> list[bytes]:
    return [wire[at : at + 1] for at in range(len(wire))]


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(wire) + 1) for place in places), len(wire)]
    return [wire[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize(
    ("method", "status", "pairs", "framing"),
    [
        pytest.param("POST", 200, [], ("close", False), id="neither-field"),
        pytest.param("GET", 200, [("Content-Length", "42")], (42, True), id="length"),
        pytest.param("GET", 200, [("content-length", "0")], (0, True), id="length-zero"),
        pytest.param("GET", 200, [("Content-Length", "7, 7")], (7, True), id="same-in-list"),
        pytest.param("GET", 200, [("Content-Length", "7")] * 2, (7, True), id="same-twice"),
        pytest.param("GET", 200, [("Transfer-Encoding", "Chunked")], ("chunked", True), id="chunked-any-case"),
        pytest.param(
            "GET",
            200,
            [("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
            ("chunked", False),
            id="both-fields-chunked-wins",
        ),
        pytest.param("GET", 200, [("Transfer-Encoding", "chunked")] * 2, ("chunked", True), id="repeated"),
        pytest.param("GET", 200, [("Transfer-Encoding", "chunked, Chunked")], ("chunked", True), id="in-list"),
        pytest.param("GET", 200, [("Transfer-Encoding", "identity, chunked")], ("chunked", True), id="no-op"),
        pytest.param("GET", 200, [("Transfer-Encoding", "identity")], ("close", False), id="identity"),
        pytest.param(
            "GET",
            200,
            [("Transfer-Encoding", "Identity"), ("Content-Length", "5")],
            (5, True),
            id="identity-and-length",
        ),
        pytest.param("HEAD", 200, [("Content-Length", "42")], (0, True), id="head"),
        pytest.param("HEAD", 200, [("Transfer-Encoding", "chunked")], (0, True), id="head-chunked"),
        pytest.param("GET", 304, [("Content-Length", "42")], (0, True), id="not-modified"),
        pytest.param("GET", 204, [], (0, True), id="no-content"),
        pytest.param("GET", 204, [("Content-Length", "0")], (0, True), id="no-content-length-zero"),
        pytest.param("GET", 204, [("Content-Length", "3")], (0, False), id="204-with-body"),
        pytest.param("GET", 204, [("Transfer-Encoding", "chunked")], (0, False), id="204-chunked"),
        pytest.param("GET", 103, [], (0, True), id="informational"),
    ],
)
def test_the_fields_determine_where_the_body_ends(
    method: str, status: int, pairs: Pairs, framing: tuple[int | str, bool]
) -> None:
    decoder, is_reusable = parse_framing(pairs, method=method, status=status)
    length: int | str = "chunked" if isinstance(decoder, ChunkedDecoder) else "close"
    if length == "close" and (decoder.finished or (decoder.feed(bytes(100)) and decoder.finished)):
        length = 100 - len(decoder.rest) if decoder.rest else 0
    assert (length, is_reusable) == framing


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("Content-Length", "1"), ("Content-Length", "2")], id="two-lengths"),
        pytest.param([("Content-Length", "1, 2")], id="two-lengths-in-a-list"),
        pytest.param([("Content-Length", "")], id="length-empty"),
        pytest.param([("Content-Length", "5,")], id="length-empty-member"),
        pytest.param([("Content-Length", "-1")], id="length-negative"),
        pytest.param([("Content-Length", "+1")], id="length-plus"),
        pytest.param([("Content-Length", "1_0")], id="length-underscore"),
        pytest.param([("Content-Length", "0x10")], id="length-hex"),
        pytest.param([("Content-Length", "1 0")], id="length-space"),
        pytest.param([("Content-Length", "\x0b1")], id="length-vertical-tab"),
        pytest.param([("Content-Length", "\xb2")], id="length-superscript"),
        pytest.param([("Content-Length", "١")], id="length-arabic-digit"),
        pytest.param([("Content-Length", "9" * 5000)], id="length-endless"),
        pytest.param([("Transfer-Encoding", "gzip, chunked")], id="gzip-chunked"),
        pytest.param([("Transfer-Encoding", "identity, gzip")], id="identity-gzip"),
        pytest.param([("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip")], id="chunked-then-gzip"),
        pytest.param([("Transfer-Encoding", "")], id="coding-empty"),
        pytest.param([("Transfer-Encoding", "xchunked")], id="coding-unknown"),
        pytest.param([("Transfer-Encoding", "chunked\x0b")], id="coding-vertical-tab"),
        pytest.param([("Transfer-Encoding", '"chunked"')], id="coding-quoted"),
        pytest.param([("Transfer-Encoding", "chunked;q=1")], id="coding-parameter"),
        pytest.param([("Transfer-Encoding", "chunked\xa0")], id="coding-no-break-space"),
        pytest.param([("Transfer-Encoding", "chunked"), ("Content-Length", "x")], id="both-fields-length-invalid"),
    ],
)
def test_contradictory_or_invalid_framing_is_refused(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="Transfer-Encoding|Content-Length"):
        parse_framing(pairs, method="POST", status=200)


WIRES = [
    pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", id="one-chunk"),
    pytest.param(b"0\r\n\r\n", b"", b"", id="empty-body"),
    pytest.param(b"000000000000000A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", b"", id="leading-zeros-upper-case"),
    pytest.param(b'5;a=1;b="x"\r\nhello\r\n00;end\r\n\r\n', b"hello", b"", id="extensions"),
    pytest.param(b"5 ; a\r\nhello\r\n0\r\n\r\n", b"hello", b"", id="bad-whitespace-before-extension"),
    pytest.param(b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b"", id="data-is-line-ends"),
    pytest.param(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", b"", id="data-is-a-last-chunk"),
    pytest.param(b"2\r\n\xe4\xbd\r\n1\r\n\xa0\r\n0\r\n\r\n", "你".encode(), b"", id="character-in-two-chunks"),
    pytest.param(b"1\r\na\r\n0\r\nA: b\r\nC:\r\n\r\n", b"a", b"", id="trailers"),
    pytest.param(b"1\r\na\r\n0\r\nA \t: b\r\n\r\n", b"a", b"", id="blanks-before-a-trailer-s-colon"),
    pytest.param(b"5 \r\nhello\r\n5 \t  \r\nworld\r\n0   \r\n\r\n", b"helloworld", b"", id="blanks-after-a-size"),
    pytest.param(b"1\r\na\r\n0\r\n\r\nHTTP/1.1", b"a", b"HTTP/1.1", id="bytes-behind-the-end"),
    pytest.param(
        encode_chunk(b"x" * 5000) + encode_chunk(b"y" * 82) + b"0\r\n\r\n", b"x" * 5000 + b"y" * 82, b"", id="sizes"
    ),
]


@pytest.mark.parametrize(("wire", "payload", "rest"), WIRES)
def test_chunks_are_decoded_wherever_they_are_split(wire: bytes, payload: bytes, rest: bytes) -> None:
    splits = [[wire], every_single_byte(wire), *([wire[:at], wire[at:]] for at in range(len(wire) + 1))]
    for pieces in splits:
        out, decoder, faulty = feed_all(pieces)
        assert (out, decoder.finished, decoder.rest, faulty) == (payload, True, rest, False)


MALFORMED = [
    pytest.param(b"\r\nhello\r\n", b"", id="size-empty"),
    pytest.param(b"0x5\r\nhello\r\n", b"", id="size-0x"),
    pytest.param(b"\n5\r\nhello\r\n", b"", id="bare-lf-first"),
    pytest.param(b"\n", b"", id="bare-lf-alone"),
    pytest.param(b"+5\r\nhello\r\n", b"", id="size-plus"),
    pytest.param(b"-5\r\nhello\r\n", b"", id="size-minus"),
    pytest.param(b" 5\r\nhello\r\n", b"", id="size-space-before"),
    pytest.param(b"5 0\r\nhello\r\n", b"", id="size-in-two"),
    pytest.param(b"5\x0b\r\nhello\r\n", b"", id="size-vertical-tab-behind"),
    pytest.param(b"1_0\r\nhello\r\n", b"", id="size-underscore"),
    pytest.param(b"g\r\nhello\r\n", b"", id="size-no-hex"),
    pytest.param(b"00000000000000005\r\nhello\r\n", b"", id="size-17-digits"),
    pytest.param(b"5;a\0b\r\nhello\r\n", b"", id="extension-nul"),
    pytest.param(b"5;a\rb\r\nhello\r\n", b"", id="extension-bare-cr"),
    pytest.param(b"5\nhello\r\n", b"", id="size-bare-lf"),
    pytest.param(b"5;a\nb\r\nhello\r\n", b"", id="extension-bare-lf"),
    pytest.param(b"5\r\nhello\n0\r\n\r\n", b"hello", id="data-bare-lf"),
    pytest.param(b"5\r\nhelloX\r\n", b"hello", id="data-longer-than-said"),
    pytest.param(b"5\r\nhell\r\n0\r\n\r\n", b"hell\r", id="data-shorter-than-said"),
    pytest.param(b"5\r\nhello\rX", b"hello", id="data-bare-cr"),
    pytest.param(b"5\r\nhello\r\n5\r\nworld\r\nzz\r\n", b"helloworld", id="fault-behind-good-chunks"),
    pytest.param(b"0\r\n\n", b"", id="last-chunk-bare-lf"),
    pytest.param(b"0\r\nA: b\n\r\n", b"", id="trailer-bare-lf"),
    pytest.param(b"0\r\nA b\r\n\r\n", b"", id="trailer-without-colon"),
    pytest.param(b"0\r\nA: b\r\n c\r\n\r\n", b"", id="trailer-folded"),
    pytest.param(b"0\r\nHTTP/1.1 200 OK\r\n\r\n", b"", id="trailer-is-a-status-line"),
    pytest.param(b"0\r\nA: \0\r\n\r\n", b"", id="trailer-nul"),
    pytest.param(b"5;" + b"a" * MAX_SIZE_LINE, b"", id="size-line-endless"),
    pytest.param(b"5;" + b"a" * MAX_SIZE_LINE + b"\r\nhello\r\n", b"", id="size-line-too-long"),
    pytest.param(b"0\r\nA: " + b"b" * MAX_TRAILERS, b"", id="trailer-endless"),
    pytest.param(b"0\r\nA: " + b"b" * MAX_TRAILERS + b"\r\n\r\n", b"", id="trailer-too-long"),
    pytest.param(b"0\r\n" + b"A: b\r\n" * 4000, b"", id="trailers-endless"),
]


@pytest.mark.parametrize(("wire", "payload"), MALFORMED)
def test_bytes_before_a_fault_are_delivered(wire: bytes, payload: bytes) -> None:
    halves = ([wire[:at], wire[at:]] for at in range(min(len(wire), 40)))
    for pieces in ([wire], every_single_byte(wire), *halves):
        out, decoder, faulty = feed_all(pieces)
        assert (out, decoder.finished, faulty) == (payload, False, True)


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"5", id="in-the-size"),
        pytest.param(b"5\r", id="in-the-line-end"),
        pytest.param(b"5\r\nhel", id="in-the-data"),
        pytest.param(b"5\r\nhello", id="before-the-line-end"),
        pytest.param(b"5\r\nhello\r\n", id="between-chunks"),
        pytest.param(b"5\r\nhello\r\n0\r\n", id="before-the-trailers"),
        pytest.param(b"5\r\nhello\r\n0\r\nA: b\r\n", id="in-the-trailers"),
    ],
)
def test_a_truncated_body_is_not_finished(wire: bytes) -> None:
    for pieces in ([wire], every_single_byte(wire)):
        assert not feed_all(pieces)[1].finished


def test_data_is_delivered_before_its_chunk_is_whole() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"ffffffff\r\nabc") == b"abc"
    assert decoder.feed(b"def") == b"def"


def test_the_longest_lines_that_are_allowed_pass() -> None:
    line = b"1;" + b"a" * (MAX_SIZE_LINE - 4) + b"\r\n"
    trailer = b"A:" + b"b" * (MAX_TRAILERS - 4)
    out, decoder, faulty = feed_all([line + b"x\r\n0\r\n" + trailer + b"\r\n\r\n"])
    assert len(line) == MAX_SIZE_LINE
    assert (out, decoder.finished, faulty) == (b"x", True, False)


def test_a_framing_fault_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="chunk-size"):
        ChunkedDecoder().feed(b"zz\r\n")


_payloads = st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.just(b"x" * 4200)), max_size=6)
_forms = st.sampled_from([b"%x", b"%X", b"%04x"])
_extensions = st.sampled_from([b"", b"", b";a", b' ;a="b,c"'])


@given(_payloads, _forms, _extensions, st.lists(st.integers(0, 20000), max_size=12), st.binary(max_size=5))
def test_decoding_is_the_inverse_of_encoding_under_every_split(
    payloads: list[bytes], form: bytes, extension: bytes, places: list[int], rest: bytes
) -> None:
    wire = b"".join(encode_chunk(data, form=form, extension=extension) for data in payloads) + b"0\r\n\r\n" + rest
    out, decoder, faulty = feed_all(cut(wire, places))
    assert (out, decoder.finished, decoder.rest, faulty) == (b"".join(payloads), True, rest, False)


def _slow(wire: bytes) -> tuple[bytes, bool, bool]:
    """The oracle: the grammar again, without a thought for speed. Payload, finished, faulty."""
    out, at = b"", 0
    while True:
        line, found, _ = wire[at:].partition(b"\r\n")
        if not found:
            return out, False, b"\n" in line
        digits = line.partition(b";")[0]
        if {10, 13} & set(line) or not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
            return out, False, True
        at += len(line) + 2
        size = int(digits, 16)
        if not size:
            return out, wire[at : at + 2] == b"\r\n", False
        data = wire[at : at + size]
        end = wire[at + size : at + size + 2]
        out += data
        if len(data) < size or end in (b"", b"\r"):
            return out, False, False
        if end != b"\r\n":
            return out, False, True
        at += size + 2


_fragments = st.sampled_from(
    [b"5\r\nhello\r\n", b"2\r\n\r\n\r\n", b"a", b"0", b"1\r\n", b"\r\n", b"\r", b"\n", b";x", b"f"]
)


@given(st.lists(_fragments, max_size=8).map(b"".join), st.lists(st.integers(0, 100), max_size=8))
def test_any_bytes_are_decoded_as_the_oracle_does(wire: bytes, places: list[int]) -> None:
    payload, finished, faulty = _slow(wire)
    out, decoder, found = feed_all(cut(wire, places))
    trailers = decoder._in_trailers and not decoder.finished
    assert out == payload
    assert decoder.finished == finished
    assert trailers or found == faulty


@given(st.lists(_fragments, max_size=8).map(b"".join))
def test_what_is_decoded_whole_h11_decodes_alike(wire: bytes) -> None:
    """A second reader must not see another body: h11 is at most more lenient, never different."""
    out, decoder, _ = feed_all([wire])
    if not decoder.finished:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    theirs = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        theirs += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert (out, decoder.rest) == (theirs, connection.trailing_data[0])
