"""Read a request: its body, its JSON and its fields, within limits."""

from __future__ import annotations

import codecs
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import pydantic
from flask import Request
from pydantic_core import from_json
from werkzeug.exceptions import BadRequest, ClientDisconnected, RequestEntityTooLarge

from ..errors import Draining, InvalidRequest, LengthRequired, MalformedBody, SSEError, TooLarge, UnsupportedMediaType
from ..relay.exchange import Exchange
from ..relay.stream.end import EndReason
from ..relay.upstream.client import RETRY_AFTER
from .model import ForwardRequest
from .resume import FIELDS as RECORDING_FIELDS

#: Where gunicorn's worker of the gateway puts a request's fields.
FIELDS = "sse.fields"

#: How many levels deep a JSON request body may be nested.
MAX_JSON_DEPTH = 64


def read_body(request: Request, exchange: Exchange, most: int) -> bytes | None:
    """Return a request's body, None if it has none.

    :param most: bytes that it may have.
    :raises TooLarge: if it has more.
    :raises LengthRequired: if the server does not pass on a body without a length.
    :raises Draining: if the process stops before it has arrived.
    :raises InvalidRequest: if it does not arrive.
    """
    length, environ = request.content_length, request.environ
    is_chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    if is_chunked and not environ.get("wsgi.input_terminated"):
        # Such a server gives an empty body, and an upstream would serve, and charge for, an empty request.
        raise LengthRequired
    # The site has read from it before, for example because it looked at `request.form`.
    was_taken = "stream" in vars(request)
    try:
        body = _read(request, length, most)
    except RequestEntityTooLarge as error:
        raise TooLarge(f"the request body is longer than {most} bytes") from error
    except (ClientDisconnected, BadRequest, OSError) as error:
        raise _not_arrived(exchange) from error
    except Exception as error:
        # Each server raises its own exceptions for a malformed body; gunicorn has six, none of them an OSError.
        raise MalformedBody("the request body is malformed") from error
    if len(body) > most:
        raise TooLarge(f"the request body is longer than {most} bytes")
    if was_taken and len(body) < (length or is_chunked):
        raise InvalidRequest("the site has read the request body already, so that nothing is left to relay")
    # werkzeug does not check the length if the server terminates the input itself.
    if len(body) < (length or 0):
        raise _not_arrived(exchange)
    return body or (b"" if length == 0 and request.method not in ("GET", "HEAD") else None)


def _read(request: Request, length: int | None, most: int) -> bytes:
    """Return a body, or a part of it that is longer than `most` bytes."""
    if length is not None and length > most:
        raise RequestEntityTooLarge
    if "stream" not in vars(request) and request.environ.get("wsgi.input_terminated"):
        # At once; what Flask puts around it takes 25 calls, to count what is counted here as well.
        return bytes(request.environ["wsgi.input"].read(most + 1 if length is None else length))
    # werkzeug silently truncates a longer body at this length, so one byte more is allowed.
    request.max_content_length = most + 1
    return request.get_data(cache=False)


def _not_arrived(exchange: Exchange) -> SSEError:
    if exchange.reason is EndReason.DRAINING:
        return Draining(retry_after=RETRY_AFTER)
    return InvalidRequest("the request body did not arrive whole")


def read_document(request: Request, exchange: Exchange, most: int) -> Any:
    """Return the JSON of a request.

    :param most: bytes that it may have.
    :raises UnsupportedMediaType: if it is something else.
    :raises TooLarge: if it has more.
    :raises InvalidRequest: if it does not arrive, or is malformed.
    :raises Draining: if the process stops before it has arrived.
    """
    media_type = request.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType("the request body must be application/json")
    return _parse_json(read_body(request, exchange, most) or b"")


def _parse_json(body: bytes) -> Any:
    try:
        # RFC 8259, section 8.1: parsers "MAY ignore the presence of a byte order mark rather than treating it as an
        # error". Section 6: "Numeric values that cannot be represented in the grammar below (such as Infinity and NaN)
        # are not permitted."
        document = from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest("the request body is not JSON in UTF-8") from error
    if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH < _depth(document):
        raise InvalidRequest(f"the JSON is nested deeper than {MAX_JSON_DEPTH} levels")
    return document


def _depth(document: Any) -> int:
    """Return how deep a document is nested, without recursion, so that no document can exhaust the stack."""
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def parse_forward_request(document: Any) -> ForwardRequest:
    """Return the forward request that the JSON describes.

    :raises InvalidRequest: if it describes none; the message names the field, and never shows its value.
    """
    try:
        return ForwardRequest.model_validate(document)
    except pydantic.ValidationError as error:
        # pydantic's own text repeats the value, which may be a secret.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the request body"
        raise InvalidRequest(f"{where}: {first['msg']}") from error


def raw_path(request: Request, name: str, path: str) -> str:
    """Return the path after the upstream's name as the client sent it, because decoding it would change it.

    :param path: the same, decoded.
    """
    raw = str(request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or "").partition("?")[0]
    _, found, rest = raw.partition(f"/upstream/{name}/")
    # If the server does not keep it, or the name is percent-encoded, the decoded path is encoded again.
    return rest if found else urllib.parse.quote(path, safe="/:@!$&'()*+,;=~")


def find_field(environ: Mapping[str, Any], name: str) -> str | None:
    """Return the value of a request's field, None if there is none."""
    return environ.get(f"HTTP_{name.upper().replace('-', '_')}")


#: Fields for the gateway or the site: credentials, the browser's page, CSRF tokens, and what proxies add.
_OWN = re.compile(
    "x-passcode|cookie|origin|referer|x-request-id|x-csrf-?token|x-xsrf-token"
    "|forwarded|x-forwarded-.*|x-real-ip|true-client-ip|cf-.*|via|cdn-loop"
)


def client_fields(request: Request, *, is_open: bool, records: bool) -> list[tuple[str, str]]:
    """Return a request's fields without those that are for the gateway or the site.

    :param records: whether fields that request a recording are for the gateway.
    """
    dropped = RECORDING_FIELDS if records else ()
    # Without a passcode it is for the upstream; but Basic is what a browser sends to a proxy in front, or to the site.
    is_basic = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")[0].lower() == "basic"
    drops_authorization = is_basic or (not is_open and not request.environ.get("HTTP_X_PASSCODE"))
    # The gateway's own worker keeps the fields as they were sent: repeated ones apart, and names with underscores.
    fields = request.environ.get(FIELDS) or request.headers.items()
    return [
        (name.title(), value)
        for name, value in fields
        if not _OWN.fullmatch(same := name.lower().replace("_", "-"))
        and same not in dropped
        and not (drops_authorization and same == "authorization")
    ]
