"""A list of notes that grows on every open page, with Datastar. Run it with `gunicorn app:app`."""

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


@app.post("/notes")
def add_note() -> str:
    item = Markup("<li>{}</li>").format(request.form["text"])
    # Datastar reads the first word of each line as its key.
    lines = ["selector #notes", "mergeMode append", *(f"fragments {line}" for line in item.splitlines())]
    sse.publish("notes", "\n".join(lines), event="datastar-merge-fragments")
    # Not 204: Datastar takes a null body, as Fetch has it then, for a lost connection, and sends the form again.
    return ""


@app.get("/notes")
def notes() -> Response:
    return sse.subscribe("notes", replay=20)
