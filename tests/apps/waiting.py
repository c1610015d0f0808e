"""The service, which also reports its greenlets, its views' ends and its responses' closing, and sets a length."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import greenlet
from flask import Response, request

from app import app
from sse import EventSourceResponse


@app.get("/greenlets")
def greenlets() -> str:
    """Count those that are alive."""
    gc.collect()
    return str(sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in gc.get_objects()))


@app.get("/wait")
def wait() -> str:
    """Wait until the worker ends it."""
    print("view begins", flush=True)
    try:
        time.sleep(600)
    finally:
        print("view ended", flush=True)
    return ""


@app.get("/hold")
def hold() -> EventSourceResponse:
    """Send an event, and then nothing."""

    def events() -> Iterator[str]:
        yield "a"
        time.sleep(600)

    return EventSourceResponse(events())


@app.after_request
def change(response: Response) -> Response:
    if "length" in request.args:
        response.headers["Content-Length"] = request.args["length"]
    if "reported" in request.args:
        response.call_on_close(lambda: print("response closed", flush=True))
    return response
