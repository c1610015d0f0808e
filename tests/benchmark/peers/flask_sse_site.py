"""A site with one channel, by Flask-SSE; it is read at `/read`."""

from __future__ import annotations

from flask import Flask, request
from flask_sse import sse  # type: ignore[import-not-found, unused-ignore]  # installed for the benchmark alone

app = Flask(__name__)
app.config.from_prefixed_env()
app.register_blueprint(sse, url_prefix="/read")


@app.post("/publish")
def publish() -> str:
    sse.publish(request.get_data(as_text=True))
    return ""
