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
    answer = requests.post(call["targetUrl"], data=call["body"], headers=call["header"], stream=True)
    return Response(answer.iter_content(None), status=answer.status_code, content_type=answer.headers["Content-Type"])


@app.get("/healthz")
def healthz() -> str:
    return "ok"
