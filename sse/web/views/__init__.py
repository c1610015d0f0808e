"""The endpoints, as blueprints."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, Response

from ...errors import SSEError
from ..state import current_state
from .channels import MayRead, channels
from .demonstration import ticks
from .forward import forward
from .refusal import METHODS, refuse
from .streams import stream
from .upstream import refuse_websocket, upstream


def relay_blueprint() -> Blueprint:
    """Return the relay's endpoints."""
    blueprint = Blueprint("sse_relay", __name__)
    blueprint.add_url_rule("/forward-sse", view_func=forward, methods=(*METHODS, "OPTIONS"))
    # One rule, so that no slash is added or removed by a redirect, which preflights may not follow.
    rule = "/upstream/<path:target>"
    blueprint.add_url_rule(rule, view_func=upstream, methods=METHODS, merge_slashes=False)
    blueprint.add_url_rule(rule, view_func=refuse_websocket, methods=["GET"], merge_slashes=False, websocket=True)
    blueprint.add_url_rule("/streams/<id>", view_func=stream, methods=(*METHODS, "OPTIONS"))
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def ticker_blueprint() -> Blueprint:
    """Return the demonstration event stream."""
    blueprint = Blueprint("sse_ticker", __name__)
    # Front ends that were written for this stream call `/hackathon/sse` and `/forward-sse` below one base URL.
    for path in ("/sse", "/hackathon/sse"):
        blueprint.add_url_rule(path, view_func=ticks, methods=(*METHODS, "OPTIONS"))
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def channels_blueprint(may_read: MayRead) -> Blueprint:
    """Return the endpoint that streams channels to whom a rule lets in."""
    blueprint = Blueprint("sse_channels", __name__)
    view = partial(channels, may_read)
    blueprint.add_url_rule("/channels", "channels", view_func=view, methods=(*METHODS, "OPTIONS"))
    blueprint.register_error_handler(SSEError, refuse)
    return blueprint


def metrics_blueprint() -> Blueprint:
    """Return the endpoint that Prometheus reads."""
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    blueprint = Blueprint("sse_metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        """Return what was counted."""
        counts = current_state().metrics
        assert counts is not None, "registered only where SSE_METRICS is on"
        return Response(counts.expose(), content_type=CONTENT_TYPE_LATEST)

    return blueprint
