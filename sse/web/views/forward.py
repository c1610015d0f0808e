"""`POST /forward-sse`: relay the request that a JSON document describes."""

from __future__ import annotations

from functools import partial
from typing import Any

from flask import Request, Response

from ...errors import InvalidRequest, LengthRequired, Throttled, TooLarge, Unauthenticated, UnsupportedMediaType
from ...protocol.field import encode_request_fields, parse_fields, with_trace
from ...protocol.target.parse import parse_target
from ...relay.exchange import Exchange
from ...relay.upstream.request import UpstreamRequest
from ..access.access import Access
from ..access.unknown import MAX_BODY
from ..call import Call, current_request
from ..parsing import find_field, parse_forward_request, read_document
from ..relay import Relay
from ..report import PUBLIC
from ..resume import parse_resume
from ..state import State, current_state
from .refusal import check_method

ALLOWED = ("POST", "OPTIONS")


def forward() -> Response:
    """Relay the request that the JSON describes."""
    (request, call), state = current_request(), current_state()
    if (options := check_method(request.method, ALLOWED)) is not None:
        return options
    with Relay(request, call, state, state.limits) as relay:
        document = _read(request, call, state, relay.exchange)
        given = parse_forward_request(document)
        target = parse_target(given.targetUrl.strip(" \t\r\n"))
        upstream = state.table.match(target)
        call.upstream = upstream.name if upstream else PUBLIC
        body = given.encode_body()
        fields = encode_request_fields(
            with_trace(parse_fields(given.header), partial(find_field, request.environ)),
            replace=(*(upstream.headers if upstream else ()), ("X-Request-Id", call.id)),
            has_body=bool(body),
        )
        outgoing = UpstreamRequest(method=given.method, target=target, fields=fields, body=body, client=call.client)
        return relay.respond(outgoing, upstream, parse_resume(request.environ, state.settings, ttl=given.resume))


def _read(request: Request, call: Call, state: State, exchange: Exchange) -> Any:
    """Return the JSON of a request that has been admitted, by its fields or by its passcode.

    A request that makes no sense counts too, so who calls and how often comes first.
    """
    access, most = state.access, state.settings.max_body
    if access.recognize(request, call):
        document = read_document(request, exchange, most)
        access.confirm(request, call, _passcode(document))
        return document
    try:
        return _read_unknown(request, call, access, exchange, most)
    except (Throttled, TooLarge, Unauthenticated):
        access.unknown_bodies.count(call.address, min(request.content_length or MAX_BODY, MAX_BODY))
        raise


def _read_unknown(request: Request, call: Call, access: Access, exchange: Exchange, most: int) -> Any:
    try:
        document = read_document(request, exchange, min(most, MAX_BODY))
    except TooLarge as error:
        hint = "" if most <= MAX_BODY else "; with the passcode in X-Passcode it may be longer"
        raise TooLarge(error.detail + hint) from error
    except (InvalidRequest, LengthRequired, UnsupportedMediaType):
        access.refuse(request, call, is_failure=False)
    access.admit_by_passcode(request, call, _passcode(document))
    return document


def _passcode(document: Any) -> str | None:
    passcode = document.get("passcode") if isinstance(document, dict) else None
    return passcode if isinstance(passcode, str) else None
