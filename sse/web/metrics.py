"""What is counted, for Prometheus.

Imported only where SSE_METRICS is on, so that the others need not pay for the library.
"""

from __future__ import annotations

import http
import os
from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..compat.prometheus_client import lock_files
from ..errors import ClientGone
from ..protocol.usage import COUNTS, Usage
from ..relay.durable import RecordingEnd
from ..relay.stream.end import StreamEnd

#: Buckets of the seconds to the first byte: from a kept connection to a model that thinks.
FIRST_BYTE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: Buckets of the seconds of a stream's longest gap: from token to token, up to the idle time-out.
GAP_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

#: Whether values are kept in files that all processes read, as the library decides when it is imported.
IS_SHARED = "PROMETHEUS_MULTIPROC_DIR" in os.environ

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

_STATUSES = frozenset({*http.HTTPStatus, ClientGone.status})


class Metrics:
    """What has been counted. Labels are names of the table and our own words, never a URL or a client's name."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        # A worker that was killed takes its streams with it: "live" is what `mark_process_dead` forgets.
        self._open = Gauge(
            "sse_streams_open", "Streams that are open", ["upstream"], multiprocess_mode="livesum", registry=registry
        )
        self._requests = counter("sse_requests", "Requests by their response", ["upstream", "status", "code"])
        self._attempts = counter(
            "sse_attempts",
            "Requests to upstreams that have several targets, by the status or the code of their outcome",
            ["upstream", "target", "outcome"],
        )
        self._ended = counter("sse_streams_ended", "Streams by why they ended", ["upstream", "reason"])
        self._bytes = counter("sse_bytes", "Bytes of the streams that have ended", ["upstream"])
        self._events = counter("sse_events", "Events of the streams that have ended", ["upstream"])
        self._first_byte = histogram(
            "sse_first_byte_seconds",
            "Seconds from the request to the first byte of the body",
            ["upstream"],
            buckets=FIRST_BYTE_BUCKETS,
        )
        self._longest_gap = histogram(
            "sse_longest_gap_seconds",
            "Seconds of a stream's longest wait between two pieces of its body, once for each stream",
            ["upstream"],
            buckets=GAP_BUCKETS,
        )
        gauge = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        self._recordings = gauge("sse_recordings_open", "Recordings that are open", ["upstream"])
        #: Set by the log of recordings.
        self.kept_bytes = gauge("sse_recordings_bytes", "Bytes of recordings in the memory of the processes")
        self._recordings_ended = counter("sse_recordings_ended", "Recordings by why they ended", ["upstream", "reason"])
        self._recorded_bytes = counter("sse_recorded_bytes", "Bytes of the recordings that have ended", ["upstream"])
        self.resumes = counter("sse_resumes", "Requests that read a recording", ["view"])
        # Without labels: names of channels come from clients.
        self.channel_events = counter("sse_channel_events", "Events that were published to channels")
        self.channel_readers = gauge("sse_channel_readers", "Open streams of channels")
        self._first_event = histogram(
            "sse_first_event_seconds",
            "Seconds from the request to the first event with data, where usage is read",
            ["upstream"],
            buckets=FIRST_BYTE_BUCKETS,
        )
        self._usage = counter("sse_usage", "Responses by how far their usage was reported", ["upstream", "state"])
        self._tokens = counter("sse_tokens", "Tokens that upstreams reported; some are parts", ["upstream", "type"])
        self.store_errors = counter("sse_store_errors", "Times the shared store was needed and away", ["part"])
        # By labels, of which there are few: the library makes texts of them each time, and looks them up under a lock.
        self._of = cache(_labelled)
        #: Returns the gauge of what is open of an upstream.
        self.streams: Callable[[str], Gauge] = partial(self._of, self._open)
        self.recordings: Callable[[str], Gauge] = partial(self._of, self._recordings)

    def count_request(self, upstream: str, status: int, code: str) -> None:
        """Count a request when its response starts.

        :param code: of our refusal, or what it was if none.
        """
        self._of(self._requests, upstream, _status(status), code).inc()

    def count_attempt(self, upstream: str, target: str, outcome: int | str) -> None:
        """Count a request to one of several targets.

        :param outcome: the status of its response, or the code of what failed.
        """
        self._of(self._attempts, upstream, target, outcome if isinstance(outcome, str) else _status(outcome)).inc()

    def observe(self, upstream: str, end: StreamEnd) -> None:
        """Count a stream that has ended."""
        self._of(self._ended, upstream, str(end.reason)).inc()
        self._of(self._bytes, upstream).inc(end.bytes)
        self._of(self._events, upstream).inc(end.events)
        if end.first_byte is not None:
            self._of(self._first_byte, upstream).observe(end.first_byte)
        if end.longest_gap is not None:
            self._of(self._longest_gap, upstream).observe(end.longest_gap)

    def observe_recording(self, upstream: str, end: RecordingEnd) -> None:
        """Count a recording that has ended."""
        self._of(self._recordings_ended, upstream, str(end.reason)).inc()
        self._of(self._recorded_bytes, upstream).inc(end.bytes)

    def observe_usage(self, upstream: str, state: str, usage: Usage | None, first_event: float | None) -> None:
        """Count what an upstream reported of a response.

        :param first_event: seconds from the request to the first event with data.
        """
        self._of(self._usage, upstream, state).inc()
        if first_event is not None:
            self._of(self._first_event, upstream).observe(first_event)
        for name in COUNTS if usage is not None else ():
            if count := getattr(usage, name):
                self._of(self._tokens, upstream, name).inc(count)

    def expose(self) -> bytes:
        """Return what was counted: in this app, or by all processes together."""
        if not IS_SHARED:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
        with lock_files(os.environ["PROMETHEUS_MULTIPROC_DIR"]):
            return generate_latest(registry)


def _labelled(metric: Metric, *labels: str) -> Metric:
    return metric.labels(*labels)


def _status(status: int) -> str:
    """Return the status if it is one that is known: an upstream may send any number."""
    return str(status) if status in _STATUSES else f"{status // 100}xx"


@cache
def _of_process() -> Metrics:
    return Metrics()


def new_metrics() -> Metrics:
    """Return what an app counts in.

    What processes share lies in one file for each, by name and labels; two apps that both wrote there would undo each
    other's counts, so the apps of a process then count in one place.
    """
    return _of_process() if IS_SHARED else Metrics()
