"""Says how a stream ended: one log line and, where they are on, the metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..relay.pump import StreamEnd
from .response import request_id
from .state import current_state

log = logging.getLogger("sse")

#: Seconds to the first byte that are told apart: from a kept connection to a model that thinks.
FIRST_BYTE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What one app has counted. Labels are names of the table and our own words, never a URL or a client's name.

    :param open_streams: tells how many streams are open.
    """

    def __init__(self, open_streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        Gauge("sse_streams_open", "Relayed streams that are open", registry=self.registry).set_function(open_streams)
        self._ended = Counter(
            "sse_streams_ended", "Streams by why they ended", ["upstream", "status", "reason"], registry=self.registry
        )
        self._bytes = Counter("sse_bytes", "Bytes relayed", ["upstream"], registry=self.registry)
        self._events = Counter("sse_events", "Events relayed", ["upstream"], registry=self.registry)
        self._first_byte = Histogram(
            "sse_first_byte_seconds",
            "Seconds from the request to the first byte of the body",
            ["upstream"],
            buckets=FIRST_BYTE_BUCKETS,
            registry=self.registry,
        )

    def observe(self, upstream: str, end: StreamEnd) -> None:
        """Count a stream that has ended."""
        self._ended.labels(upstream, str(end.status), str(end.reason)).inc()
        self._bytes.labels(upstream).inc(end.bytes)
        self._events.labels(upstream).inc(end.events)
        if end.first_byte is not None:
            self._first_byte.labels(upstream).observe(end.first_byte)


def reporter(upstream: str, client: str) -> Callable[[StreamEnd], None]:
    """Return what reports the end of the current request's stream; it keeps nothing of the request but names.

    :param upstream: its name in the table.
    :param client: the key under which the client is counted; only a name goes into the log.
    """
    id_ = request_id()
    name = client.removeprefix("name:") if client.startswith("name:") else "-"
    metrics = current_state().metrics

    def report(end: StreamEnd) -> None:
        if metrics is not None:
            metrics.observe(upstream, end)
        log.info(
            "stream end=%s status=%d upstream=%s client=%s events=%d bytes=%d first_byte=%s total=%.3f request_id=%s",
            end.reason,
            end.status,
            upstream,
            name,
            end.events,
            end.bytes,
            "-" if end.first_byte is None else f"{end.first_byte:.3f}",
            end.total,
            id_,
        )

    return report


def metrics_blueprint() -> Blueprint:
    """Return the endpoint that Prometheus reads."""
    blueprint = Blueprint("sse_metrics", __name__)
    blueprint.add_url_rule("/metrics", view_func=metrics)
    return blueprint


def metrics() -> Response:
    """Serve what was counted in this process."""
    counted = current_state().metrics
    assert counted is not None, "registered only where SSE_METRICS is on"
    return Response(generate_latest(counted.registry), content_type=CONTENT_TYPE_LATEST)
