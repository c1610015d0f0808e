"""`GET /metrics`: the counts, for Prometheus."""

from __future__ import annotations

from flask import Response

from ..state import current_state


def metrics() -> Response:
    """Return what was counted."""
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    counts = current_state().metrics
    assert counts is not None, "registered only where SSE_METRICS is on"
    return Response(counts.expose(), content_type=CONTENT_TYPE_LATEST)
