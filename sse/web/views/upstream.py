"""`ANY /upstream/<name>/<path>`: relay the request itself."""

from __future__ import annotations

from flask import Response

from ...errors import NotFound, UpgradeRequired
from ...protocol.field import encode_request_fields
from ...relay.upstream.request import UpstreamRequest
from ..call import current_request
from ..parsing import client_fields, raw_path, read_body
from ..relay import Relay
from ..resume import parse_resume
from ..state import current_state


def upstream(target: str) -> Response:
    """Relay the request to an upstream of the table.

    :param target: the upstream's name and, behind a slash, the path, which is the upstream's own, slashes and all.
    """
    (request, call), state = current_request(), current_state()
    name, _, path = target.partition("/")
    with Relay(request, call, state, state.limits) as relay:
        state.access.admit(request, call)
        entry = state.table.get(name)
        if entry is None:
            raise NotFound(f"there is no upstream {name!r}")
        call.upstream = name
        resume = parse_resume(request.environ, state.settings)
        body = read_body(request, relay.exchange, state.settings.max_body)
        fields = encode_request_fields(
            client_fields(request, is_open=state.access.is_open, records=state.recordings is not None),
            replace=(*entry.headers, ("X-Request-Id", call.id)),
            has_body=bool(body),
            accept=None,
        )
        outgoing = UpstreamRequest(
            method=request.method,
            target=state.table.join(entry, raw_path(request, name, path), request.query_string.decode("latin-1")),
            fields=fields,
            body=body,
            client=call.client,
        )
        return relay.respond(outgoing, entry, resume)


def refuse_websocket(target: str) -> Response:
    """Refuse to switch to WebSockets, such that clients fall back to HTTP."""
    raise UpgradeRequired
