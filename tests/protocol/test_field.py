"""Which fields pass, in either direction; the refused list is longer than the allowed one."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.errors import InvalidRequest
from sse.protocol.field import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    encode_request_fields,
    is_event_stream,
    is_field_name,
    is_field_value,
    is_forwardable,
    parse_fields,
    response_fields,
    with_trace,
)

Pairs = list[tuple[str, str]]
FORCED = [("Accept-Encoding", "identity"), ("Accept", "text/event-stream")]

HOP_BY_HOP = [
    "Connection",
    "Content-Length",
    "Expect",
    "HTTP2-Settings",
    "Host",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
]


def spellings(name: str) -> list[str]:
    return [name, name.lower(), name.upper(), name.replace("-", "_")]


@pytest.mark.parametrize(
    ("document", "pairs"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param("{}", [], id="empty-in-a-string"),
        pytest.param("", [], id="string-without-anything"),
        pytest.param({"A": "b"}, [("A", "b")], id="string"),
        pytest.param('{"A": "b"}', [("A", "b")], id="in-a-string"),
        pytest.param(
            {"A": 1, "B": 1.5, "C": -0.25, "D": 0}, [("A", "1"), ("B", "1.5"), ("C", "-0.25"), ("D", "0")], id="numbers"
        ),
        pytest.param({"A": ["b", 2]}, [("A", "b"), ("A", "2")], id="list-is-a-repeated-field"),
        pytest.param({"A": []}, [], id="list-without-anything"),
        pytest.param({"A": "", "B": " b\t"}, [("A", ""), ("B", "b")], id="whitespace-around-is-no-part"),
        pytest.param({"A": "b\tc d"}, [("A", "b\tc d")], id="whitespace-within"),
        pytest.param({"A": "caf\xe9 \x80"}, [("A", "caf\xe9 \x80")], id="latin-1"),
        pytest.param({"!#$%&'*+-.^_`|~09azAZ": "b"}, [("!#$%&'*+-.^_`|~09azAZ", "b")], id="every-token-character"),
    ],
)
def test_a_header_of_strings_numbers_and_lists_is_accepted(document: object, pairs: Pairs) -> None:
    assert parse_fields(document) == pairs


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="array"),
        pytest.param([["A", "b"]], id="array-of-pairs"),
        pytest.param(1, id="number"),
        pytest.param(True, id="bool"),
        pytest.param("A: b", id="string-of-a-header"),
        pytest.param("[]", id="string-of-an-array"),
        pytest.param('"{}"', id="string-in-a-string"),
        pytest.param("null", id="string-of-null"),
        pytest.param("{", id="string-broken"),
        pytest.param("[" * 100_000, id="string-deep"),
        pytest.param('{"A": ' + "9" * 5000 + "}", id="string-of-an-endless-number"),
        pytest.param('{"A": NaN}', id="string-of-nan"),
        pytest.param('{"A": -Infinity}', id="string-of-infinity"),
    ],
)
def test_anything_but_an_object_is_refused(document: object) -> None:
    with pytest.raises(InvalidRequest, match="^header: "):
        parse_fields(document)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("X-A", "b\r\nX-B: c", id="value-crlf"),
        pytest.param("X-A", "b\nc", id="value-lf"),
        pytest.param("X-A", "b\rc", id="value-cr"),
        pytest.param("X-A", "\r\n", id="value-only-crlf"),
        pytest.param("X-A", "b\r\n", id="value-crlf-at-the-end"),
        pytest.param("X-A", "b\0c", id="value-nul"),
        pytest.param("X-A", "b\x0bc", id="value-vertical-tab"),
        pytest.param("X-A", "b\x1bc", id="value-escape"),
        pytest.param("X-A", "b\x7f", id="value-delete"),
        pytest.param("X-A", "你好", id="value-beyond-latin-1"),
        pytest.param("X-A", "b\u010a", id="value-that-truncates-to-lf"),
        pytest.param("X-A", "\u2028", id="value-line-separator"),
        pytest.param("X-A", "\ud800", id="value-surrogate"),
        pytest.param("X-A", None, id="value-null"),
        pytest.param("X-A", True, id="value-bool"),
        pytest.param("X-A", {"b": "c"}, id="value-object"),
        pytest.param("X-A", [["b"]], id="value-list-in-a-list"),
        pytest.param("X-A", ["b", None], id="value-null-in-a-list"),
        pytest.param("X-A", ["b", "c\n"], id="value-lf-in-a-list"),
        pytest.param("X-A", float("inf"), id="value-infinity"),
        pytest.param("X-A", float("nan"), id="value-nan"),
        pytest.param("X-A", 10**5000, id="value-endless-number"),
        pytest.param("", "b", id="name-empty"),
        pytest.param("X A", "b", id="name-space"),
        pytest.param(" X-A", "b", id="name-space-before"),
        pytest.param("X-A ", "b", id="name-space-behind"),
        pytest.param("X-A:", "b", id="name-colon"),
        pytest.param(":path", "b", id="name-pseudo"),
        pytest.param("X-A\r\nX-B", "b", id="name-crlf"),
        pytest.param("X-A\n", "b", id="name-lf-at-the-end"),
        pytest.param("X-A\0", "b", id="name-nul"),
        pytest.param("X-\xc4", "b", id="name-latin-1"),
        pytest.param("X-（", "b", id="name-beyond-latin-1"),
        pytest.param("X(A)", "b", id="name-comment"),
        pytest.param('"X"', "b", id="name-quoted"),
    ],
)
def test_a_field_that_http_cannot_carry_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="^header: ") as caught:
        parse_fields({name: value})
    assert repr(name) in str(caught.value)
    if isinstance(value, str):
        with pytest.raises(InvalidRequest):
            encode_request_fields([(name, value)], has_body=False)


def test_a_refusal_shows_no_value() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_fields({"Authorization": "Bearer canary\n"})
    assert "canary" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("name", [spelling for name in HOP_BY_HOP for spelling in spellings(name)])
def test_a_field_of_the_connection_is_never_sent_on(name: str) -> None:
    assert encode_request_fields([(name, "1"), ("X-A", "b")], has_body=False) == [("X-A", "b"), *FORCED]


def test_a_clients_content_length_does_not_frame_the_request() -> None:
    """The reference let it through: on a shared connection the rest of the body became the next caller's request."""
    pairs = parse_fields({"Content-Length": "1", "content-length": 1, "CONTENT_LENGTH": ["1", "2"]})
    assert encode_request_fields(pairs, has_body=True) == [*FORCED, ("Content-Type", "application/json")]


@pytest.mark.parametrize(
    "connection",
    [
        pytest.param(["X-Hop"], id="alone"),
        pytest.param(["close, x-HOP"], id="in-a-list"),
        pytest.param(["close", "X-Hop"], id="in-a-second-field"),
        pytest.param([", ,\tX-Hop ,"], id="among-nothing"),
        pytest.param(["X_Hop"], id="as-cgi-writes-it"),
    ],
)
def test_what_connection_names_is_not_sent_on(connection: list[str]) -> None:
    pairs = [("X-Hop", "b"), *(("Connection", value) for value in connection), ("x-hop", "c"), ("X-Hop-2", "d")]
    assert encode_request_fields(pairs, has_body=False) == [("X-Hop-2", "d"), *FORCED]


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "Last-Event-ID", "X-DashScope-SSE", "OpenAI-Beta", "Range"]
)
def test_an_end_to_end_field_is_sent_on(name: str) -> None:
    assert is_forwardable(name)
    assert encode_request_fields([(name, "b")], has_body=False) == [(name, "b"), *FORCED]


def test_accept_and_its_encoding_are_the_gateways() -> None:
    pairs = [("Accept", "text/html"), ("ACCEPT", "*/*"), ("accept-encoding", "gzip"), ("Accept-Language", "zh")]
    assert encode_request_fields(pairs, has_body=False) == [("Accept-Language", "zh"), *FORCED]


def test_accept_can_be_left_to_the_client_but_not_its_encoding() -> None:
    pairs = [("Accept", "application/json"), ("Accept-Encoding", "br")]
    expected = [("Accept", "application/json"), ("Accept-Encoding", "identity")]
    assert encode_request_fields(pairs, has_body=False, accept=None) == expected


@pytest.mark.parametrize("name", spellings("Authorization") + spellings("X-Api-Key"))
def test_the_upstreams_own_fields_take_the_place_of_the_clients(name: str) -> None:
    ours = [("Authorization", "Bearer ours"), ("X-Api-Key", "ours")]
    pairs = [(name, "theirs"), (name, "theirs too"), ("X-A", "b")]
    assert encode_request_fields(pairs, replace=ours, has_body=False) == [("X-A", "b"), *FORCED, *ours]


def test_the_client_cannot_remove_an_upstreams_own_field() -> None:
    ours = [("Authorization", "Bearer ours")]
    pairs = [("Connection", "authorization, accept, content-type")]
    fields = encode_request_fields(pairs, replace=ours, has_body=True)
    assert fields == [*FORCED, *ours, ("Content-Type", "application/json")]


@pytest.mark.parametrize(
    ("pairs", "has_body", "types"),
    [
        pytest.param([], True, ["application/json"], id="json-by-default"),
        pytest.param([], False, [], id="none-without-a-body"),
        pytest.param([("content-TYPE", "text/plain")], True, ["text/plain"], id="the-clients"),
    ],
)
def test_a_body_without_a_type_is_json(pairs: Pairs, has_body: bool, types: list[str]) -> None:
    fields = encode_request_fields(pairs, has_body=has_body)
    assert [value for name, value in fields if name.lower() == "content-type"] == types


PARENT, STATE, BAGGAGE = ("traceparent", "00-a-b-01"), ("tracestate", "x=1,y=2"), ("baggage", "user=ann")


@pytest.mark.parametrize(
    ("pairs", "request_fields", "expected"),
    [
        pytest.param([], [PARENT, STATE, BAGGAGE, ("X-A", "b")], [PARENT, STATE, BAGGAGE], id="of-the-request"),
        pytest.param([("X-A", "b")], [PARENT], [("X-A", "b"), PARENT], id="besides-others"),
        pytest.param([("TraceParent", "own")], [PARENT, STATE], [("TraceParent", "own")], id="no-state-of-another"),
        pytest.param([("Tracestate", "own")], [PARENT], [("Tracestate", "own")], id="no-parent-of-another"),
        pytest.param([("Baggage", "own")], [PARENT, BAGGAGE], [("Baggage", "own"), PARENT], id="own-baggage"),
        pytest.param([PARENT], [BAGGAGE], [PARENT, BAGGAGE], id="own-parent"),
        pytest.param([], [], [], id="none"),
    ],
)
def test_the_requests_trace_goes_on_unless_header_names_one(
    pairs: Pairs, request_fields: Pairs, expected: Pairs
) -> None:
    assert with_trace(pairs, dict(request_fields).get) == expected


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("X-A", "b")] * (MAX_FIELDS + 1), id="too-many"),
        pytest.param([("Connection", "close")] * (MAX_FIELDS + 1), id="too-many-that-would-not-pass"),
        pytest.param([("X-A", "b" * MAX_FIELD_BYTES)], id="too-long-a-value"),
        pytest.param([("X" * MAX_FIELD_BYTES, "b")], id="too-long-a-name"),
        pytest.param([("X-A", "b" * 1000)] * 40, id="too-long-together"),
    ],
)
def test_fields_are_bounded_in_number_and_size(pairs: Pairs) -> None:
    with pytest.raises(InvalidRequest):
        encode_request_fields(pairs, has_body=False)


def test_the_most_fields_that_are_allowed_pass() -> None:
    pairs = [("X-A", "b" * 300)] * MAX_FIELDS
    assert encode_request_fields(pairs, has_body=False) == [*pairs, *FORCED]


@pytest.mark.parametrize(
    "name",
    [
        "Content-Encoding",
        "Retry-After",
        "X-Request-Id",
        "Request-ID",
        "apim-request-id",
        "X-RateLimit-Remaining-Tokens",
        "RateLimit",
        "RateLimit-Policy",
        "anthropic-ratelimit-requests-limit",
        "Mcp-Session-Id",
    ],
)
def test_a_field_of_the_short_list_comes_back(name: str) -> None:
    pairs = [(name, "a"), (name, " b ")]
    assert response_fields(pairs) == [("Content-Type", "application/octet-stream"), (name, "a"), (name, "b")]


@pytest.mark.parametrize(
    "name",
    [
        *HOP_BY_HOP,
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
        "Access-Control-Request-Id",
        "Alt-Svc",
        "Cache-Control",
        "Clear-Site-Data",
        "Content-Disposition",
        "Content-Encoding-X",
        "Content-Location",
        "Content-Security-Policy",
        "Link",
        "Location",
        "NEL",
        "Origin-Agent-Cluster",
        "Refresh",
        "Retry-After-Location",
        "Report-To",
        "Server",
        "Service-Worker-Allowed",
        "Set-Cookie",
        "Set-Cookie2",
        "SourceMap",
        "Strict-Transport-Security",
        "Timing-Allow-Origin",
        "Vary",
        "X-Accel-Redirect",
        "X-Frame-Options",
        "X-Sendfile",
        "X-Upstream-Status",
    ],
)
def test_no_other_field_comes_back(name: str) -> None:
    for spelling in spellings(name):
        assert response_fields([(spelling, "a")]) == [("Content-Type", "application/octet-stream")]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\0", "\u010a"])
def test_a_value_that_would_split_the_response_is_dropped(value: str) -> None:
    pairs = [("Retry-After", value), ("Content-Type", value)]
    assert response_fields(pairs) == [("Content-Type", "application/octet-stream")]


def test_what_the_upstreams_connection_names_does_not_come_back() -> None:
    pairs = [("Connection", "close, x-request-id"), ("X-Request-Id", "a"), ("Retry-After", "1")]
    assert response_fields(pairs) == [("Content-Type", "application/octet-stream"), ("Retry-After", "1")]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/event-stream",
        "text/event-stream;charset=UTF-8",
        "Text/Event-Stream ; charset=utf-8",
        'text/event-stream; charset="utf-8"',
        "text/event-stream;",
        "application/json",
        "application/problem+json; charset=utf-8",
        "application/x-ndjson",
        "text/plain; charset=gb18030",
    ],
)
def test_a_type_that_no_browser_runs_comes_back_as_it_is(content_type: str) -> None:
    assert response_fields([("content-type", f" {content_type} ")]) == [("Content-Type", content_type)]


@pytest.mark.parametrize(
    "content_types",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="empty"),
        pytest.param(["text/html"], id="html"),
        pytest.param(["TEXT/HTML; charset=utf-8"], id="html-upper-case"),
        pytest.param(["application/xhtml+xml"], id="xhtml"),
        pytest.param(["image/svg+xml"], id="svg"),
        pytest.param(["text/xml"], id="xml"),
        pytest.param(["text/javascript"], id="script"),
        pytest.param(["application/json+x"], id="json-is-no-prefix"),
        pytest.param(["text/css"], id="style"),
        pytest.param(["application/pdf"], id="pdf"),
        pytest.param(["multipart/x-mixed-replace;boundary=a"], id="multipart"),
        pytest.param(["*/*"], id="any"),
        pytest.param(["text"], id="no-slash"),
        pytest.param(["text/plain, text/html"], id="list"),
        pytest.param(["text/plain;a=b, text/html"], id="list-behind-a-parameter"),
        pytest.param(['text/plain;a=", text/html;"'], id="list-in-quotes"),
        pytest.param(['text/plain;a="b', "c"], id="quote-open"),
        pytest.param(["text/plain", "text/html"], id="two-fields"),
        pytest.param(["application/json", "text/plain"], id="two-safe-fields"),
        pytest.param(["text/plain text/html"], id="space"),
        pytest.param(["text /plain"], id="space-before-the-slash"),
        pytest.param(["text/html;text/event-stream"], id="safe-one-as-parameter"),
        pytest.param(["text/html/event-stream"], id="two-slashes"),
    ],
)
def test_any_other_type_comes_back_as_bytes(content_types: list[str]) -> None:
    pairs = [("Content-Type", content_type) for content_type in content_types]
    assert response_fields(pairs) == [("Content-Type", "application/octet-stream")]


@pytest.mark.parametrize("tail", ["; " * 5000 + ",", ";\t " * 5000 + '"', ";a=" * 5000 + ",", ";a=b " * 5000 + ","])
def test_a_hostile_type_costs_no_more_than_its_length(tail: str) -> None:
    started = time.process_time()
    assert response_fields([("Content-Type", f"text/plain{tail}")]) == [("Content-Type", "application/octet-stream")]
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", True),
        ("text/event-stream;charset=utf-8", True),
        (" Text/Event-Stream\t; x", True),
        ("text/event-streams", False),
        ("x-text/event-stream", False),
        ("text/html; text/event-stream", False),
        ("\xa0text/event-stream", False),
        ("", False),
    ],
)
def test_an_event_stream_is_recognised_by_its_type_alone(content_type: str, expected: bool) -> None:
    assert is_event_stream(content_type) is expected


_names = st.one_of(st.sampled_from([s for name in HOP_BY_HOP for s in spellings(name)]), st.text(max_size=8))
_values = st.one_of(st.text(max_size=8), st.sampled_from(["X-A", "close", "chunked", "a\r\nb"]))


@given(st.lists(st.tuples(_names, _values), max_size=8), st.booleans())
def test_nothing_goes_out_that_frames_or_splits_a_message(pairs: Pairs, has_body: bool) -> None:
    try:
        fields = encode_request_fields(pairs, has_body=has_body)
    except InvalidRequest:
        assert not all(is_field_name(name) and is_field_value(value) for name, value in pairs)
        return
    for name, value in fields:
        assert is_forwardable(name)
        assert is_field_name(name)
        assert value.encode("latin-1").decode("latin-1") == value.strip(" \t")
        assert not re.search(r"[\r\n\0]", name + value)
    # What was judged once is judged alike when it comes again, as through a second gateway.
    assert sorted(encode_request_fields(fields, has_body=has_body)) == sorted(fields)


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=5))
def test_an_object_and_the_string_that_holds_it_mean_the_same(document: dict[str, str]) -> None:
    try:
        expected = parse_fields(document)
    except InvalidRequest as error:
        with pytest.raises(InvalidRequest, match=re.escape(str(error))):
            parse_fields(json.dumps(document))
        return
    assert parse_fields(json.dumps(document)) == expected


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=6))
def test_whatever_an_upstream_sends_one_safe_type_comes_back(pairs: Pairs) -> None:
    fields = response_fields([("content-type", "text/html"), *pairs])
    assert [value for name, value in fields if name.lower() == "content-type"] == ["application/octet-stream"]
    assert all(is_field_value(value) for _, value in fields)
