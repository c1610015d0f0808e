"""The textbook relay: Flask, `requests.post(stream=True)` and `iter_content(None)`, under gunicorn's gevent worker.

It does nothing else: no allow-list, no passcode, no throttle, no time-out, no notice of a client that leaves.
"""

from __future__ import annotations

import requests
from flask import Flask, Response, request

app = Flask(__name__)


@app.post("/forward-sse")
def forward() -> Response:
    call = request.get_json()
    response = requests.post(call["targetUrl"], data=call["body"], headers=call["header"], stream=True)
    return Response(
        response.iter_content(None), status=response.status_code, content_type=response.headers["Content-Type"]
    )


@app.get("/healthz")
def healthz() -> str:
    return "ok"
