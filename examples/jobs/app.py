"""Jobs that run in a process of their own, which publishes their progress to the pages that wait for it.

Run the site with `FLASK_SSE_STORAGE_URI=redis://127.0.0.1/0 gunicorn app:app`, and the worker, with the same setting,
with `flask --app app work`. Celery or RQ would take the place of the list in Redis; their tasks publish
in the same way.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import redis
from flask import Flask, Response, send_file

from sse import SSE

app = Flask(__name__)
app.config.from_prefixed_env()
sse = SSE(app, relay=False)
queue = redis.Redis.from_url(app.config["SSE_STORAGE_URI"])


@app.get("/")
def index() -> Response:
    return send_file(Path(__file__).with_name("index.html"))


@app.post("/jobs")
def start_job() -> dict[str, str]:
    job = uuid.uuid4().hex
    sse.publish(f"job.{job}", {"percent": 0})
    queue.rpush("jobs", job)
    return {"id": job}


@app.get("/jobs/<job>/events")
def job_events(job: str) -> Response:
    # Past events too, for a page that is late: the job may have begun.
    return sse.subscribe(f"job.{job}", replay=100)


@app.cli.command()
def work() -> None:
    """Do the jobs in the queue, one after the other."""
    while True:
        _, job = queue.blpop(["jobs"])
        for percent in range(10, 101, 10):
            time.sleep(0.05)
            sse.publish(f"job.{job.decode()}", {"percent": percent})
        # The page's EventSource reconnects, gets 204, and stops.
        sse.close_channel(f"job.{job.decode()}")
