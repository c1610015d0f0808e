"""A site with one channel, by our extension."""

from __future__ import annotations

from flask import Flask, Response, request

from sse import SSE

app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, relay=False)


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.get("/read")
def read() -> Response:
    return sse.subscribe("news")


@app.post("/publish")
def publish() -> str:
    return sse.publish("news", request.get_data(as_text=True))
