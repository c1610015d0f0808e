"""A site that streams: what it does, when it is closed and what it has produced can be asked for and steered."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, request, stream_with_context

from sse import SSE, EventSourceResponse, ServerSentEvent, last_event_id

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")

app = Flask(__name__)
app.config.from_prefixed_env()
SSE(app, relay=False)

gate = threading.Event()
produced = 0


@contextmanager
def telling_end(name: str) -> Iterator[None]:
    """Say when the iterable of the request with that id is closed."""
    try:
        yield
    finally:
        os.write(1, f"closed {name}\n".encode())


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.post("/open-gate")
def open_gate() -> str:
    gate.set()
    return "open"


@app.post("/close-gate")
def close_gate() -> str:
    gate.clear()
    return "closed"


@app.get("/produced")
def count() -> str:
    return str(produced)


@app.get("/kinds")
def kinds() -> Response:
    items: list[Any] = [ServerSentEvent(id="7", event="news", data="a\nb"), "text", {"a": 1}, [1, "ü"]]
    return EventSourceResponse(iter(items))


@app.get("/gated")
def gated() -> Response:
    """One event, then silence until the gate is open, then another."""
    name = request.headers["X-Request-Id"]

    def events() -> Iterator[str]:
        with telling_end(name):
            yield "one"
            gate.wait()
            yield "two"

    return EventSourceResponse(events())


@app.get("/ticks")
def ticks() -> Response:
    name = request.headers["X-Request-Id"]

    def events() -> Iterator[str]:
        with telling_end(name):
            while True:
                yield "tick"
                time.sleep(0.05)

    return EventSourceResponse(events())


@app.get("/flood")
def flood() -> Response:
    name = request.headers["X-Request-Id"]

    def events() -> Iterator[str]:
        global produced
        with telling_end(name):
            while True:
                produced += 1
                yield "x" * 100_000

    return EventSourceResponse(events())


@app.get("/broken")
def broken() -> Response:
    def events() -> Iterator[str]:
        yield "one"
        raise {"os": BrokenPipeError("of the iterable"), "value": ValueError("of the iterable")}[request.args["kind"]]

    return EventSourceResponse(stream_with_context(events()))


@app.get("/resume")
def resume() -> Response:
    return EventSourceResponse([{"seen": last_event_id()}])
