"""Report what became of a request, once: one log line and, where they are on, the metrics."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import SSEError
from ..relay.durable import RecordingEnd
from ..relay.exchange import Exchange
from ..relay.stream.end import EndReason, StreamEnd
from ..signals import stream_ended, stream_opened
from .call import Call, current_call
from .log import log_event
from .state import current_app_itself, current_state

if TYPE_CHECKING:
    from .metrics import Metrics

log = logging.getLogger("sse")

#: The upstream of a target that is in no table.
PUBLIC = "public"
#: The code of a request that was not refused.
RELAYED = "relayed"


class StreamReport:
    """Reports on one stream; it keeps nothing of the request but names."""

    def __init__(self, call: Call, metrics: Metrics | None) -> None:
        self._upstream, self._client, self._request_id = call.upstream, call.name, call.id
        self._call_fields = call.log_fields
        self._metrics = metrics
        #: The app, if a site wants to know of streams.
        self._app = current_app_itself() if stream_opened.receivers or stream_ended.receivers else None

    def begin(self, exchange: Exchange) -> None:
        """Count the stream as open, and let it be listed."""
        exchange.report = self
        if self._metrics is not None:
            self._metrics.streams(self._upstream).inc()
        if self._app is not None:
            stream_opened.send(self._app, **self._named(), cancel=partial(exchange.cancel, EndReason.CLIENT_GONE))

    def describe(self) -> dict[str, Any]:
        """Return whose stream it is, and of what, for a list of open streams."""
        return {**self._named(), "target": self._call_fields.get("target")}

    def count(self, status: int) -> None:
        """Count the request as relayed.

        :param status: the upstream's.
        """
        if self._metrics is not None:
            self._metrics.count_request(self._upstream, status, RELAYED)

    def finish(self) -> None:
        """Count the stream as no longer open."""
        if self._metrics is not None:
            self._metrics.streams(self._upstream).dec()

    def log_end(self, end: StreamEnd) -> None:
        """Log and count how the stream ended."""
        if self._metrics is not None:
            self._metrics.observe(self._upstream, end)
        fields = _stream_fields(end, self._upstream, self._client)
        fields |= {**self._call_fields, "request_id": self._request_id}
        log_event(log, logging.INFO, "stream", fields)
        if self._app is not None:
            stream_ended.send(self._app, **self._named(), end=end)

    def _named(self) -> dict[str, Any]:
        return {"upstream": self._upstream, "client": self._client, "request_id": self._request_id}


class RecordingReport:
    """Reports on one recording; it keeps nothing of the request but names.

    :param id: of the recording; only its begin is logged, because the whole is a right to read.
    """

    def __init__(self, call: Call, metrics: Metrics | None, id: str) -> None:
        self._names = _names(call)
        self._fields = {"recording": id[:6], "request_id": call.id}
        self._call_fields = call.log_fields
        self._metrics = metrics

    def begin(self) -> None:
        """Count the recording as open."""
        if self._metrics is not None:
            self._metrics.recordings(self._names["upstream"]).inc()

    def finish(self) -> None:
        """Count the recording as no longer open."""
        if self._metrics is not None:
            self._metrics.recordings(self._names["upstream"]).dec()

    def log_end(self, end: RecordingEnd) -> None:
        """Log and count how the recording ended."""
        self.finish()
        if self._metrics is not None:
            self._metrics.observe_recording(self._names["upstream"], end)
        fields = {"end": str(end.reason), **self._names, "bytes": end.bytes, "total": round(end.total, 3)}
        log_event(log, logging.INFO, "recording", {**fields, **self._call_fields, **self._fields})


def report_refusal(error: SSEError) -> None:
    """Log and count that the current request was refused."""
    call = current_call()
    _count(error, call)
    if call.end is None:
        event, fields = "refused", {"status": error.status, **_names(call)}
    else:
        event, fields = "stream", _stream_fields(call.end, call.upstream, call.name)
        if (metrics := current_state().metrics) is not None:
            metrics.observe(call.upstream, call.end)
    if error.cause:
        fields["cause"] = error.cause
    log_event(log, logging.INFO, event, {**fields, **call.log_fields, "code": error.code, "request_id": call.id})


def report_failure(cause: Exception) -> None:
    """Log and count that the current request failed because of a defect, with its traceback."""
    error, call = SSEError(), current_call()
    _count(error, call)
    fields = {"error": type(cause).__name__, "status": error.status, **_names(call)}
    log_event(log, logging.ERROR, "failed", {**fields, "code": error.code, "request_id": call.id}, cause=cause)


def _count(error: SSEError, call: Call) -> None:
    if (metrics := current_state().metrics) is not None:
        metrics.count_request(call.upstream, error.status, error.code)


def _names(call: Call) -> dict[str, Any]:
    return {"upstream": call.upstream, "client": call.name}


def _stream_fields(end: StreamEnd, upstream: str, client: str | None) -> dict[str, Any]:
    return {
        "end": str(end.reason),
        "status": end.status,
        "upstream": upstream,
        "client": client,
        "events": end.events,
        "bytes": end.bytes,
        # Seconds, to the thousandth.
        "first_byte": end.first_byte and round(end.first_byte, 3),
        "longest_gap": end.longest_gap and round(end.longest_gap, 3),
        "total": round(end.total, 3),
    }
