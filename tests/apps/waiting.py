"""The service, which also tells how many greenlets there are, and sets a length where it is asked to."""

from __future__ import annotations

import gc

import greenlet
from flask import Response, request

from app import app


@app.get("/greenlets")
def greenlets() -> str:
    """Count those that are alive."""
    gc.collect()
    return str(sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in gc.get_objects()))


@app.after_request
def set_length(response: Response) -> Response:
    if "length" in request.args:
        response.headers["Content-Length"] = request.args["length"]
    return response
