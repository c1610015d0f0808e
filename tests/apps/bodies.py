"""A site that reads the bodies of requests, or does not."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator

from flask import Flask, Response, request

from sse import SSE, EventSourceResponse

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")

app = Flask(__name__)
app.config.from_prefixed_env()
SSE(app, demonstration=True)


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.post("/read")
def read() -> str:
    return str(len(request.get_data()))


@app.post("/lines")
def lines() -> str:
    return str(sum(len(line) for line in request.stream))


@app.post("/ignored")
def ignored() -> str:
    return "ignored"


@app.post("/stream")
def stream() -> Response:
    return EventSourceResponse(iter("ab"))


@app.get("/paced")
def paced() -> Response:
    """Stream an event every 20 ms."""

    def events() -> Iterator[str]:
        while True:
            time.sleep(0.02)
            yield "tick"

    return EventSourceResponse(events())


@app.get("/silent")
def silent() -> Response:
    """Stream one event, and then nothing for long."""

    def events() -> Iterator[str]:
        yield "one"
        time.sleep(60)
        yield "two"

    given = request.args.get("heartbeat")
    return EventSourceResponse(events(), heartbeat=None if given is None else float(given))


@app.get("/unbegun")
def unbegun() -> Response:
    """Stream nothing for long."""

    def events() -> Iterator[str]:
        time.sleep(60)
        yield "one"

    return EventSourceResponse(events())
