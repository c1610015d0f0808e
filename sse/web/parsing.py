"""What a request brings: its body, its JSON, its fields, within bounds."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pydantic
from flask import Request
from werkzeug.exceptions import BadRequest, ClientDisconnected, RequestEntityTooLarge

from ..errors import Draining, InvalidRequest, SSEError, TooLarge, UnsupportedMediaType
from ..relay.exchange import Exchange
from ..relay.stream.end import EndReason
from ..relay.upstream.client import RETRY_AFTER
from .model import ForwardRequest

#: Levels a JSON request body may be nested.
MAX_JSON_DEPTH = 64


def _refuse_constant(name: str) -> None:
    # RFC 8259, section 6: "Numeric values that cannot be represented in the grammar below (such as Infinity and NaN)
    # are not permitted."
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read_body(request: Request, exchange: Exchange, most: int) -> bytes | None:
    """Return a request's body, None if it has none.

    :param most: bytes that it may have.
    :raises TooLarge: if it has more.
    :raises Draining: if the process stops before it has arrived.
    :raises InvalidRequest: if it does not arrive.
    """
    length = request.content_length
    # werkzeug gives the first so many bytes of a longer body as if they were all, so one more is asked for.
    request.max_content_length = most + 1
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise TooLarge(f"the request body is longer than {most} bytes") from error
    except (ClientDisconnected, BadRequest, OSError) as error:
        raise _not_arrived(exchange) from error
    except Exception as error:
        # What a server raises for a malformed body is its own affair: gunicorn has six kinds, none of them an OSError.
        raise InvalidRequest("the request body is malformed") from error
    if len(body) > most:
        raise TooLarge(f"the request body is longer than {most} bytes")
    # Nor does it mind a body that ends early, where the server says that it ends what it reads.
    if len(body) < (length or 0):
        raise _not_arrived(exchange)
    return body or (b"" if length == 0 and request.method not in ("GET", "HEAD") else None)


def _not_arrived(exchange: Exchange) -> SSEError:
    if exchange.reason is EndReason.DRAINING:
        return Draining(retry_after=RETRY_AFTER)
    return InvalidRequest("the request body did not arrive whole")


def read_document(request: Request, exchange: Exchange, most: int) -> tuple[Any, SSEError | None]:
    """Return the JSON of a request, or why there is none.

    :raises Draining: if the process stops before it has arrived; who calls is not known then.
    """
    try:
        if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
            raise UnsupportedMediaType("the request body must be application/json")
        return _parse_json(read_body(request, exchange, most) or b""), None
    except Draining:
        raise
    except SSEError as error:
        return None, error


def _parse_json(body: bytes) -> Any:
    try:
        document = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the request body is not JSON in UTF-8") from error
    if _depth(document) > MAX_JSON_DEPTH:
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


def parse_call(document: Any) -> ForwardRequest:
    """Return the call that the JSON describes.

    :raises InvalidRequest: if it describes none; the message names the field, and never shows its value.
    """
    try:
        return ForwardRequest.model_validate(document)
    except pydantic.ValidationError as error:
        # Not pydantic's text: it repeats the value, which may be a secret.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the request body"
        raise InvalidRequest(f"{where}: {first['msg']}") from error


def raw_path(request: Request, name: str) -> str:
    """Return the path behind the upstream's name as the client wrote it: decoding it would change what is sent."""
    raw = str(request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or "").partition("?")[0]
    _, found, rest = raw.partition(f"/upstream/{name}/")
    if found:
        return rest
    # No server that keeps it, or a name written with escapes: then what was decoded is encoded again.
    decoded = str(request.environ["PATH_INFO"]).partition(f"/upstream/{name}/")[2].encode("latin-1")
    return urllib.parse.quote(decoded, safe="/:@!$&'()*+,;=~")


def client_fields(request: Request, *, is_open: bool) -> list[tuple[str, str]]:
    """Return a request's fields less the gateway's own credential and what the browser says of its page."""
    own = {"x-passcode", "cookie", "origin", "referer", "x-request-id"}
    if not is_open and not request.headers.get("X-Passcode"):
        own.add("authorization")
    return [(name, value) for name, value in request.headers.items() if name.lower() not in own]
