"""A site that reads the bodies of requests, or does not."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, request

from sse import SSE, EventSourceResponse

app = Flask(__name__)
app.config.from_prefixed_env()
SSE(app)


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
