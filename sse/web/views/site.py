"""`SSE.relay()`: relay an upstream from a view of the site's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, current_app

from ...protocol.field import encode_request_fields, with_trace
from ...relay.upstream.request import UpstreamRequest
from ..call import current_request
from ..refused import refusing
from ..relay import Relay
from ..state import current_state

METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])


def relay_from_site(
    upstream: str,
    path: str,
    *,
    method: str,
    json: Any,
    data: bytes | str | None,
    headers: Mapping[str, str] | None,
    client: str | None,
) -> Response:
    """Do what `SSE.relay()` promises."""
    if json is not None and data is not None:
        raise ValueError("json and data are two bodies: give one")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(sorted(METHODS))}, not {method!r}")
    if client is not None and not (isinstance(client, str) and client):
        raise ValueError(f"client must be a name, a string that is not empty, not {client!r}")
    (request, call), state = current_request(), current_state()
    entry = state.table.get(upstream)
    if entry is None:
        raise LookupError(f"there is no upstream {upstream!r} in SSE_UPSTREAMS")
    # A view may relay anew after a refusal.
    call.upstream, call.end, call.log_fields = upstream, None, {}
    state.access.name(request, call, client)
    body = data.encode() if isinstance(data, str) else data
    if json is not None:
        body = current_app.json.dumps(json, ensure_ascii=False, separators=(",", ":")).encode()
    # In WSGI's form, as the endpoints have them: a character is a byte.
    path, _, query = path.removeprefix("/").encode(errors="surrogatepass").decode("latin-1").partition("?")
    given = list((headers or {}).items())
    has_accept = any(name.lower() == "accept" for name, _ in given)
    with refusing(), Relay(request, call, state) as relay:
        fields = encode_request_fields(
            with_trace(given, request.headers.get),
            replace=(*entry.headers, ("X-Request-Id", call.id)),
            has_body=bool(body),
            accept=None if has_accept else "text/event-stream",
        )
        target = state.table.join(entry, path, query)
        wanted = UpstreamRequest(method=method, target=target, fields=fields, body=body, client=call.client)
        return relay.respond(wanted, entry)
