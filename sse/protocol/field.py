"""Which HTTP fields pass, in either direction (RFC 9110, sections 5 and 7.6.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from ..errors import InvalidRequest

#: Fields of a request, and bytes of them all; the usual limits of servers (gunicorn: 100, nginx: 4 times 8 KiB).
MAX_FIELDS = 100
MAX_FIELD_BYTES = 32 * 1024

_OWS = " \t"
# Neither Infinity nor NaN is less, which Python's JSON has; and Python refuses to write an int of 4,301 digits.
_LARGEST = 1e300
# 5.6.2: "token = 1*tchar".
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD_NAME = re.compile(_TOKEN)
# 5.5: "field-vchar = VCHAR / obs-text", and "Field values containing CR, LF, or NUL characters are invalid and
# dangerous"; other controls have no use either.
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# 8.3.1: "media-type = type "/" subtype parameters". No comma, even quoted: Fetch takes the last of a list of types.
_MEDIA_TYPE = re.compile(
    rf'({_TOKEN}/{_TOKEN})[ \t]*(?:;[ \t]*(?:{_TOKEN}=(?:{_TOKEN}|"[ !#-+\x2d-\x5b\x5d-\x7e]*")[ \t]*)?)*'
)

# 7.6.1: what an intermediary removes before it forwards, beside what Connection names; and the framing, which is the
# next connection's own business (RFC 9112, section 6).
_NEVER_SENT = frozenset(
    "connection content-length expect host http2-settings keep-alive te trailer transfer-encoding upgrade".split()
)
_NEVER_BEGINS = "proxy-"
# W3C Trace Context and Baggage. The second is meaningless without the first.
_TRACE = (("traceparent", "tracestate"), ("baggage",))
# What SDKs of OpenAI, Anthropic, DashScope and MCP read, beside Content-Type.
_PASSED_BACK = re.compile(
    r"content-encoding|retry-after(?:-ms)?|(?:x-|apim-|x-amzn-|x-ms-|x-dashscope-)?request-?id"
    r"|(?:x-|anthropic-)?rate-?limit(?:-[a-z0-9-]+)?"
    r"|x-should-retry|openai-processing-ms|openai-version|mcp-session-id|mcp-protocol-version|www-authenticate"
    r"|x-vercel-ai-ui-message-stream"
)
# Fields of a response that never pass: they would speak for the gateway's origin, or frame its own connection.
_NEVER_PASSED = re.compile(
    r"set-cookie2?|access-control-.*|location|content-(?:length|type|security-policy)|clear-site-data|refresh"
    r"|strict-transport-security|service-worker-allowed|alt-svc|x-accel-.*|x-sendfile|connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*|x-request-id"
)
# 5.3: "a sender MUST NOT generate multiple field lines with the same name in a message [...] unless that field's
# definition allows multiple field line values to be recombined as a comma-separated list".
_SINGLETONS = frozenset(
    "authorization content-type content-range date from if-modified-since if-range if-unmodified-since last-event-id "
    "max-forwards range user-agent x-api-key api-key".split()
)
_SAFE_TYPES = frozenset(
    "text/event-stream text/plain application/json application/ndjson application/x-ndjson application/jsonl".split()
)


def is_field_name(text: str) -> bool:
    """Return whether the text is a field name: a token."""
    return _FIELD_NAME.fullmatch(text) is not None


def is_field_value(text: str) -> bool:
    """Return whether the text can be sent as a field value: latin-1 and no control character but HTAB."""
    return _FIELD_VALUE.fullmatch(text) is not None


def is_event_stream(content_type: str) -> bool:
    """Return whether a Content-Type is `text/event-stream`, with whatever parameters."""
    return content_type.partition(";")[0].strip(_OWS).lower() == "text/event-stream"


def is_forwardable(name: str) -> bool:
    """Return whether a request field of that name may go upstream at all: it is end-to-end, and no framing."""
    name = _same(name)
    return name not in _NEVER_SENT and not name.startswith(_NEVER_BEGINS)


def is_passable(name: str) -> bool:
    """Return whether a response field of that name may pass to clients where an upstream's entry lists it."""
    return is_field_name(name) and not _NEVER_PASSED.fullmatch(_same(name))


def parse_fields(obj: object) -> list[tuple[str, str]]:
    """Return the fields that the `header` of a forward request names.

    :param obj: an object of strings, numbers, or lists of those; or a string that holds one in JSON, or nothing.
    :raises InvalidRequest: it is something else, or a field cannot be sent; the message names it.
    """
    if isinstance(obj, str):
        try:
            obj = json.loads(obj) if obj.strip() else {}
        except (ValueError, RecursionError):
            raise InvalidRequest("header: the string does not hold JSON") from None
    if not isinstance(obj, dict):
        raise InvalidRequest("header: not an object")
    return _checked(
        [
            (str(name), text)
            for name, value in obj.items()
            for text in ([value] if isinstance(value, str) else _iter_texts(str(name), value))
        ]
    )


def encode_request_fields(
    pairs: Iterable[tuple[str, str]],
    *,
    replace: Iterable[tuple[str, str]] = (),
    has_body: bool,
    accept: str | None = "text/event-stream",
) -> list[tuple[str, str]]:
    """Return the fields that go upstream: the end-to-end ones of the client, and what the gateway sets itself.

    :param pairs: the client's fields, repeated ones apart.
    :param replace: the upstream's own fields, which take the place of those of the same name.
    :param has_body: a body follows; it is JSON unless a field has another type.
    :param accept: the one media type that is requested; None leaves the client's choice.
    :raises InvalidRequest: a field is invalid, or occurs twice although it has one value, or there are too many.
    """
    given = _checked(pairs)
    if len(given) > MAX_FIELDS or sum([len(name) + len(value) + 4 for name, value in given]) > MAX_FIELD_BYTES:
        raise InvalidRequest(f"more than {MAX_FIELDS} fields, or than {MAX_FIELD_BYTES} bytes of them")
    # The body reaches the reader as the upstream wrote it, so a coding would only delay what it reads.
    forced = {"accept-encoding": ("Accept-Encoding", "identity")}
    if accept is not None:
        forced["accept"] = ("Accept", accept)
    replace = list(replace)
    names = {name.lower().replace("_", "-") for name, _ in replace}
    dropped = _NEVER_SENT.union(_nominated(given), names, forced)
    fields = [
        pair
        for pair in given
        if (same := pair[0].lower().replace("_", "-")) not in dropped and not same.startswith(_NEVER_BEGINS)
    ]
    names_sent = [name.lower() for name, _ in fields]
    for name in _SINGLETONS.intersection(names_sent):
        if names_sent.count(name) > 1:
            raise InvalidRequest(f"header: {name!r} occurs more than once")
    fields += [pair for same, pair in forced.items() if same not in names] + replace
    if has_body and "content-type" not in names_sent and "content-type" not in names:
        fields.append(("Content-Type", "application/json"))
    return fields


def replace_fields(pairs: Iterable[tuple[str, str]], replace: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return fields with others in the place of those of the same name."""
    names = {_same(name) for name, _ in replace}
    # `_same`, written out, as above.
    return [*[pair for pair in pairs if pair[0].lower().replace("_", "-") not in names], *replace]


def with_trace(pairs: list[tuple[str, str]], find: Callable[[str], str | None]) -> list[tuple[str, str]]:
    """Return the fields, with those of the request's trace unless they have a trace themselves.

    :param find: returns the value of the request's field of a name.
    """
    named = {name.lower().replace("_", "-") for name, _ in pairs}
    added = [name for group in _TRACE if named.isdisjoint(group) for name in group]
    return [*pairs, *((name, value) for name in added if (value := find(name)) is not None)]


def response_fields(pairs: Iterable[tuple[str, str]], *, listed: Container[str] = ()) -> list[tuple[str, str]]:
    """Return the fields of an upstream's response that the client gets, with a Content-Type that no browser runs.

    :param listed: names in lower case of more fields that pass.
    """
    given = [(name, value.strip(_OWS)) for name, value in pairs if _FIELD_VALUE.fullmatch(value)]
    hop_by_hop = _nominated(given)
    types = {value for name, value in given if name.lower() == "content-type"}
    passed = [
        (name, value)
        for name, value in given
        if ((lower := name.lower()) in listed or _PASSED_BACK.fullmatch(lower)) and _same(name) not in hop_by_hop
    ]
    return [("Content-Type", _safe_type(types)), *passed]


def _safe_type(types: set[str]) -> str:
    match = _MEDIA_TYPE.fullmatch(next(iter(types))) if len(types) == 1 else None
    if match is not None and ((essence := match[1].lower()) in _SAFE_TYPES or essence.endswith("+json")):
        return match[0]
    return "application/octet-stream"


def _same(name: str) -> str:
    # CGI and its children (RFC 3875, section 4.1.18) write "-" as "_": there, X_Api_Key is X-Api-Key. It is written out
    # where it would be called for each field of a request.
    return name.lower().replace("_", "-")


def _nominated(pairs: Iterable[tuple[str, str]]) -> set[str]:
    # 7.6.1: "for each connection-option in this field, remove any header or trailer field(s) from the message with the
    # same name as the connection-option".
    options: set[str] = set()
    for name, value in pairs:
        if name.lower() == "connection":
            options.update(_same(option.strip(_OWS)) for option in value.split(","))
    return options


def _checked(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    checked = []
    for name, value in pairs:
        if _FIELD_NAME.fullmatch(name) is None:
            raise InvalidRequest(f"header: {name[:64]!r} is not a field name")
        if _FIELD_VALUE.fullmatch(value) is None:
            raise InvalidRequest(f"header: the value of {name[:64]!r} has a character that no field can carry")
        checked.append((name, value.strip(_OWS)))
    return checked


def _iter_texts(name: str, value: object) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, int | float) and not isinstance(item, bool) and abs(item) < _LARGEST:
            yield repr(item)
        else:
            raise InvalidRequest(f"header: the value of {name[:64]!r} is no string, number, or list of those")
