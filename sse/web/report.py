"""Says what became of a request, once: one log line and, where they are on, the metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from flask import request

from ..errors import SSEError
from ..relay.pump import StreamEnd
from .log import log_event
from .response import request_id
from .state import State, current_state

log = logging.getLogger("sse")

#: The upstream of a request that was refused before it was known which.
UNKNOWN = "-"
#: The upstream of a target that is in no table.
PUBLIC = "public"
#: The code of a request that was not refused.
RELAYED = "relayed"

#: Characters of a client's name that are logged: a site's `authorize` may give any.
MAX_NAME = 64

Reporter = Callable[[StreamEnd], None]


def note_upstream(name: str) -> None:
    """Keep which upstream the current request is for.

    :param name: its name in the table, or a word of ours.
    """
    request.environ["sse.upstream"] = name


def note_unopened(end: StreamEnd) -> None:
    """Keep how the current request's stream ended before it began; it is said together with the refusal."""
    request.environ["sse.end"] = end


def reporter(state: State) -> Reporter:
    """Return what reports the end of the current request's stream; it keeps nothing of the request but names."""
    upstream, client = _names()
    id_, metrics = request_id(), state.metrics

    def report(end: StreamEnd) -> None:
        if metrics is not None:
            metrics.observe(upstream, end)
        log_event(log, logging.INFO, "stream", {**_said(end, upstream, client), "request_id": id_})

    return report


def open_stream(state: State) -> AbstractContextManager[None]:
    """Return a context in which the current request's stream is counted as open."""
    return nullcontext() if state.metrics is None else state.metrics.open_stream(_names()[0])


def report_answer(state: State, status: int) -> None:
    """Count that the current request is relayed.

    :param status: the upstream's.
    """
    if state.metrics is not None:
        state.metrics.count_request(_names()[0], status, RELAYED)


def report_refusal(error: SSEError) -> None:
    """Report that the current request was refused."""
    _count(error)
    upstream, client = _names()
    said: dict[str, Any] = {"status": error.status, "upstream": upstream, "client": client}
    end: StreamEnd | None = request.environ.get("sse.end")
    if end is not None:
        metrics = current_state().metrics
        if metrics is not None:
            metrics.observe(upstream, end)
        said = _said(end, upstream, client)
    event = "refused" if end is None else "stream"
    log_event(log, logging.INFO, event, {**said, "code": error.code, "request_id": request_id()})


def report_failure(cause: Exception) -> None:
    """Report that the current request met a fault of ours, with its traceback."""
    error = SSEError()
    _count(error)
    upstream, client = _names()
    said = {"error": type(cause).__name__, "status": error.status, "upstream": upstream, "client": client}
    fields = {**said, "code": error.code, "request_id": request_id()}
    log_event(log, logging.ERROR, "failed", fields, exc_info=cause)


def _count(error: SSEError) -> None:
    metrics = current_state().metrics
    if metrics is not None:
        metrics.count_request(_names()[0], error.status, error.code)


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


def _names() -> tuple[str, str | None]:
    """Return the upstream's name, and the client's, None if it has none: addresses are not logged."""
    environ = request.environ
    kind, _, name = str(environ.get("sse.client", "")).partition(":")
    return str(environ.get("sse.upstream", UNKNOWN)), name[:MAX_NAME] if kind == "name" else None
