"""A guest book that shows new entries at once, with htmx 4. Run it with `gunicorn app:app`."""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request, send_file
from markupsafe import Markup

from sse import SSE

app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, relay=False)


@app.get("/")
def index() -> Response:
    return send_file(Path(__file__).with_name("index.html"))


@app.post("/entries")
def add_entry() -> tuple[str, int]:
    sse.publish("entries", Markup("<li>{}</li>").format(request.form["text"]))
    return "", 204


@app.get("/entries")
def entries() -> Response:
    return sse.subscribe("entries", replay=20)
