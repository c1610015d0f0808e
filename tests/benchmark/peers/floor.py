"""What lies below every view of a site: the benchmark's streams from a WSGI function, and from a view of Flask's.

No upstream is asked, nothing is checked or counted: gunicorn, and Flask, as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, Response, request

from ..load import events_of


def events(path: str) -> list[bytes]:
    """Return the stream that the benchmark's upstream has at a path, in one piece."""
    _, stream, count, _ = path.split("/")
    return [b"".join(events_of(int(stream), int(count)))]


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Respond without a framework."""
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return events(environ["PATH_INFO"])


app = Flask(__name__)


@app.post("/<path:path>")
def view(path: str) -> Response:
    request.get_data()
    # An iterator, for a list that is whole would have a length.
    return Response(iter(events(request.path)), content_type="text/event-stream")


@app.get("/healthz")
def healthz() -> str:
    return "ok"


def bare_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The WSGI function, which can be asked whether it is there."""
    return (app if environ["PATH_INFO"] == "/healthz" else bare)(environ, start_response)
