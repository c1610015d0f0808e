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
from .refusal import METHODS


@refusing()
def relay(
    upstream: str,
    path: str,
    *,
    method: str = "POST",
    json: Any = None,
    data: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    client: str | None = None,
) -> Response:
    """Return a response that relays an upstream, for a view of the site's own to return.

    It goes the way of the gateway's endpoints: the upstream table with its keys, the limits of open streams,
    cancelling when the client leaves, the ends, the log and the metrics. Who may call, and how often, the view
    decides before; the throttle does not count it. Nothing of the client's request is sent but its trace.

    :param upstream: the name in `SSE_UPSTREAMS`.
    :param path: the path below the upstream's URL, with a query if there is one.
    :param method: of the upstream request.
    :param json: the body, encoded as the app's JSON; None: none.
    :param data: the body as it is; `Content-Type` is JSON unless `headers` has one.
    :param headers: fields of the upstream request; the table's replace them. `Accept` is `text/event-stream`
        by default.
    :param client: the client's name, by which its streams are counted and logged. None: the name that `authorize`
        returns, or else its address.
    :raises Refused: if there are too many streams, the upstream cannot be reached, or a field cannot be sent;
        Flask turns it into a response unless the view catches it.
    :raises LookupError: if there is no such upstream.
    :raises ValueError: for two bodies, an unknown method, or an empty name.
    :raises RuntimeError: outside a request, or if the app has no SSE.
    """
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
    with Relay(request, call, state, state.limits) as exchange:
        fields = encode_request_fields(
            with_trace(given, request.headers.get),
            replace=(*entry.headers, ("X-Request-Id", call.id)),
            has_body=bool(body),
            accept=None if has_accept else "text/event-stream",
        )
        target = state.table.join(entry, path, query)
        wanted = UpstreamRequest(method=method, target=target, fields=fields, body=body, client=call.client)
        return exchange.respond(wanted, entry)
