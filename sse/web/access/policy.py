"""Refuse calls that a client, or an upstream's entry in the table, does not allow."""

from __future__ import annotations

import json

from ...errors import InvalidRequest, ModelNotAllowed, RouteNotAllowed, TargetNotAllowed
from ...protocol.policy import are_models_allowed, is_route_allowed
from ...protocol.target.entry import Upstream
from ...relay.upstream.request import UpstreamRequest
from ..call import Call


def check_call(call: Call, entry: Upstream | None, request: UpstreamRequest) -> None:
    """Check whether a client may send a request to an upstream.

    :param entry: the upstream's in the table; None for a public target.
    :raises TargetNotAllowed: if the upstream is not one of the client's.
    :raises RouteNotAllowed: if the method and path are not allowed.
    :raises ModelNotAllowed: if a model is named that is not allowed, or none.
    :raises InvalidRequest: if the request must include usage, and does not.
    """
    rules, target = call.rules, request.target
    path = target.matched_path if entry is None else target.matched_path[len(entry.base.matched_path.rstrip("/")) :]
    if rules is not None:
        if rules.upstreams is not None and (entry is None or entry.name not in rules.upstreams):
            raise TargetNotAllowed(cause="the upstream is not one of the client's")
        if not is_route_allowed(rules.routes, request.method, path):
            raise RouteNotAllowed
        if not are_models_allowed(
            rules.models, method=request.method, path=path, query=target.query, body=request.body
        ):
            raise ModelNotAllowed
    if entry is not None:
        if entry.routes and not is_route_allowed(entry.routes, request.method, path):
            raise RouteNotAllowed
        if entry.require_usage and _hides_usage(request.body):
            raise InvalidRequest('stream_options: {"include_usage": true} is required for streams of this upstream')


def _hides_usage(body: bytes | None) -> bool:
    """Return whether a body requests a stream of OpenAI's dialect without its usage."""
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):
        return False
    if not isinstance(document, dict) or document.get("stream") is not True or "messages" not in document:
        return False
    options = document.get("stream_options")
    return not (isinstance(options, dict) and options.get("include_usage") is True)
