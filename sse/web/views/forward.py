"""`POST /forward-sse`: relay the request that a JSON document describes."""

from __future__ import annotations

from flask import Response

from ...protocol.field import encode_request_fields, parse_fields, with_trace
from ...protocol.target.parse import parse_target
from ...relay.upstream.adapter import UpstreamRequest
from ..call import current_request
from ..parsing import parse_call, read_document
from ..relay import Relay
from ..report import PUBLIC
from ..state import current_state
from .refusal import check_method

ALLOWED = ("POST", "OPTIONS")


def forward() -> Response:
    """Relay the request that the JSON describes."""
    if (options := check_method(ALLOWED)) is not None:
        return options
    (request, call), state = current_request(), current_state()
    with Relay(request, call, state) as relay:
        document, failure = read_document(request, relay.exchange, state.settings.max_body)
        passcode = document.get("passcode") if isinstance(document, dict) else None
        # A request that makes no sense counts too, so who calls and how often comes first.
        state.access.admit(request, call, passcode if isinstance(passcode, str) else None)
        if failure is not None:
            raise failure
        asked = parse_call(document)
        target = parse_target(asked.targetUrl)
        upstream = state.table.match(target)
        call.upstream = upstream.name if upstream else PUBLIC
        body = asked.encode_body()
        fields = encode_request_fields(
            with_trace(parse_fields(asked.header), request.headers.get),
            replace=(*(upstream.headers if upstream else ()), ("X-Request-Id", call.id)),
            has_body=bool(body),
        )
        return relay.respond(
            UpstreamRequest(method=asked.method, target=target, fields=fields, body=body, client=call.client)
        )
