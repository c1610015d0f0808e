"""Says what became of a request, once: one log line and, where they are on, the metrics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flask import Request

from ..errors import SSEError
from ..relay.stream.end import StreamEnd
from .log import log_event
from .response import request_id
from .state import current_request, current_state

if TYPE_CHECKING:
    from .metrics import Metrics

log = logging.getLogger("sse")

#: The upstream of a request that was refused before it was known which.
UNKNOWN = "-"
#: The upstream of a target that is in no table.
PUBLIC = "public"
#: The code of a request that was not refused.
RELAYED = "relayed"

#: Characters of a client's name that are logged: a site's `authorize` may give any.
MAX_NAME = 64


def note_upstream(request: Request, name: str) -> None:
    """Keep which upstream a request is for.

    :param name: its name in the table, or a word of ours.
    """
    request.environ["sse.upstream"] = name


def note_unopened(request: Request, end: StreamEnd) -> None:
    """Keep how a request's stream ended before it began; it is said together with the refusal."""
    request.environ["sse.end"] = end


class StreamReport:
    """Says what becomes of one stream; it keeps nothing of the request but names.

    :param request: the one that asked for it, of which it is known who sent it and which upstream it is for.
    """

    def __init__(self, request: Request, metrics: Metrics | None) -> None:
        self._upstream, self._client = _names(request)
        self._request_id = request_id(request)
        self._metrics = metrics

    def begin(self) -> None:
        """Count the stream as open."""
        if self._metrics is not None:
            self._metrics.begin_stream(self._upstream)

    def answer(self, status: int) -> None:
        """Count the request as relayed.

        :param status: the upstream's.
        """
        if self._metrics is not None:
            self._metrics.count_request(self._upstream, status, RELAYED)

    def finish(self) -> None:
        """Count the stream as open no more."""
        if self._metrics is not None:
            self._metrics.finish_stream(self._upstream)

    def tell(self, end: StreamEnd) -> None:
        """Say how the stream ended."""
        if self._metrics is not None:
            self._metrics.observe(self._upstream, end)
        said = _said(end, self._upstream, self._client)
        said["request_id"] = self._request_id
        log_event(log, logging.INFO, "stream", said)


def report_refusal(error: SSEError) -> None:
    """Report that the current request was refused."""
    request = current_request()
    upstream, client = _names(request)
    _count(error, upstream)
    said: dict[str, Any] = {"status": error.status, "upstream": upstream, "client": client}
    end: StreamEnd | None = request.environ.get("sse.end")
    if end is not None:
        metrics = current_state().metrics
        if metrics is not None:
            metrics.observe(upstream, end)
        said = _said(end, upstream, client)
    if error.cause:
        said["cause"] = error.cause
    event = "refused" if end is None else "stream"
    log_event(log, logging.INFO, event, {**said, "code": error.code, "request_id": request_id(request)})


def report_failure(cause: Exception) -> None:
    """Report that the current request met a fault of ours, with its traceback."""
    error, request = SSEError(), current_request()
    upstream, client = _names(request)
    _count(error, upstream)
    said = {"error": type(cause).__name__, "status": error.status, "upstream": upstream, "client": client}
    fields = {**said, "code": error.code, "request_id": request_id(request)}
    log_event(log, logging.ERROR, "failed", fields, exc_info=cause)


def _count(error: SSEError, upstream: str) -> None:
    metrics = current_state().metrics
    if metrics is not None:
        metrics.count_request(upstream, error.status, error.code)


def _said(end: StreamEnd, upstream: str, client: str | None) -> dict[str, Any]:
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


def _names(request: Request) -> tuple[str, str | None]:
    """Return the upstream's name, and the client's, None if it has none: addresses are not logged."""
    environ = request.environ
    kind, _, name = str(environ.get("sse.client", "")).partition(":")
    return str(environ.get("sse.upstream", UNKNOWN)), name[:MAX_NAME] if kind == "name" else None
