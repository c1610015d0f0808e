"""A chat page in front of an LLM API; the API's key, if there is one, stays on the server.

Run it with `gunicorn app:app`. The built-in demonstration upstream answers until SSE_UPSTREAMS names another `demo`.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, send_file

from sse import SSE

app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, demonstration=True)


@app.get("/")
def index() -> Response:
    return send_file(Path(__file__).with_name("index.html"))
