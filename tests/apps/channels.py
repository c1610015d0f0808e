"""A site with channels: it publishes what it is sent, and streams what is asked for."""

from __future__ import annotations

import gc
import logging
import sys

import greenlet
from flask import Flask, Request, Response, request

from sse import SSE

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")


def may_read(request: Request, channel: str) -> bool:
    """Let all read what begins with `public`."""
    return channel.startswith("public")


app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, relay=False, channels=may_read)


@app.get("/healthz")
def healthz() -> str:
    return "ok\n"


@app.post("/publish/<path:channel>")
def publish(channel: str) -> str:
    return sse.publish(channel, request.get_data(as_text=True), event=request.args.get("event"))


@app.post("/close/<path:channel>")
def close(channel: str) -> str:
    sse.close_channel(channel)
    return ""


@app.get("/read")
def read() -> Response:
    duration = request.args.get("duration", type=float)
    return sse.subscribe(*request.args.getlist("c"), replay=request.args.get("replay", 0, int), duration=duration)


@app.get("/info/<channel>")
def info(channel: str) -> dict[str, object]:
    found = sse.channel_info(channel)
    return {"last_id": found.last_id, "events": found.events, "readers": found.readers}


@app.get("/greenlets")
def greenlets() -> str:
    gc.collect()
    return str(sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in gc.get_objects()))
