"""A list of messages that grows on every open page, with Turbo Streams. Run it with `gunicorn app:app`."""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request, send_file
from markupsafe import Markup

from sse import SSE

app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, relay=False)
APPEND = Markup('<turbo-stream action="append" target="messages"><template><li>{}</li></template></turbo-stream>')


@app.get("/")
def index() -> Response:
    return send_file(Path(__file__).with_name("index.html"))


@app.post("/messages")
def add_message() -> tuple[str, int]:
    sse.publish("messages", APPEND.format(request.form["text"]))
    return "", 204


@app.get("/messages")
def messages() -> Response:
    return sse.subscribe("messages", replay=20)
