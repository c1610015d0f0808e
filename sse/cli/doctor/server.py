"""Check gunicorn's settings: gunicorn.conf.py of this directory and GUNICORN_CMD_ARGS."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flask import current_app

from ...relay.drain import DRAIN_EVENT_WINDOW, DRAIN_WRITE_WINDOW, WORKER_POLLS
from ...settings import Settings
from .finding import Finding, fail, ok, warn

#: Connections beside the streams: health checks, and requests that are refused.
CONNECTION_ROOM = 100
#: File descriptors beside those of the streams, which take two each: those, idle upstreams, logs, the store.
FILE_ROOM = 200
#: gunicorn's workers that can do it, and what it costs.
_COSTS = {
    "ThreadWorker": "each stream holds a thread",
    "GeventPyWSGIWorker": "a response's head waits for the first bytes of its body",
}
#: Seconds to read a configuration.
PATIENCE = 30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """gunicorn's settings, under its own names; see `probe`."""

    #: The names of its class and of its base classes.
    worker_bases: list[str]
    workers: int
    worker_connections: int
    graceful_timeout: int
    keepalive: int
    preload: bool
    has_control_socket: bool
    reuse_port: bool
    has_http_2: bool
    max_requests: int
    handles_child_exit: bool
    #: Whether there is a `post_worker_init`, which can end streams before the worker is killed.
    ends_streams: bool
    is_patched: bool
    is_patched_late: bool
    #: The soft limit of file descriptors.
    files: int


def check_server(settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong with gunicorn's settings, alone and together with those of the service."""
    if not Path("gunicorn.conf.py").exists() and "GUNICORN_CMD_ARGS" not in os.environ:
        yield warn(
            "gunicorn",
            "there is no gunicorn.conf.py in this directory",
            "run this where gunicorn is started, with the options of its command line in GUNICORN_CMD_ARGS",
        )
        return
    try:
        plan = read_plan()
    except ValueError as error:
        yield fail("gunicorn", f"its settings cannot be read: {error}", "fix gunicorn.conf.py or GUNICORN_CMD_ARGS")
        return
    for check in (_worker_class, _patching, _workers, _recordings, _connections, _restart, _control_socket, _files):
        yield check(plan, settings)
    yield from _pitfalls(plan, settings)


def read_plan() -> Plan:
    """Return gunicorn's settings.

    :raises ValueError: with the last line that gunicorn writes, if it refuses them.
    """
    program = str(Path(__file__).with_name("probe.py"))
    # What the file creates on its way (the directory of the metrics) is gone with this one.
    with tempfile.TemporaryDirectory() as directory:
        try:
            # -P: the modules beside the program are not to be found under the names of others.
            done = subprocess.run(
                [sys.executable, "-P", program],
                env={**os.environ, "TMPDIR": directory},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"not done after {PATIENCE} s") from None
    if done.returncode:
        raise ValueError((done.stderr.strip() or "no reason given").splitlines()[-1])
    return Plan(**json.loads(done.stdout.splitlines()[-1]))


def _worker_class(plan: Plan, settings: Settings) -> Finding:
    remedy = 'worker_class = "gevent" in gunicorn.conf.py, or -k gevent'
    for base, cost in _COSTS.items():
        if base in plan.worker_bases:
            return warn("worker class", f"{base}: {cost}", remedy)
    if _is_gevent(plan):
        return ok("worker class", "gevent's: a stream is a greenlet at most")
    return fail("worker class", f"{plan.worker_bases[0]}: not made for streams, one can occupy a whole process", remedy)


def _is_gevent(plan: Plan) -> bool:
    return "GeventWorker" in plan.worker_bases


def _patching(plan: Plan, settings: Settings) -> Finding:
    remedy = "from gevent import monkey; monkey.patch_all() as the first lines of gunicorn.conf.py"
    if plan.is_patched_late:
        return fail("patching", "gevent patches ssl after it was used: calls over TLS may fail", remedy)
    if plan.is_patched or not _is_gevent(plan):
        return ok("patching", "before everything else" if plan.is_patched else "not needed")
    if plan.preload:
        return fail("patching", "the app is loaded before gevent patches: calls over TLS fail", remedy)
    return warn("patching", "done by the worker: what is imported in the master keeps blocking", remedy)


def _workers(plan: Plan, settings: Settings) -> Finding:
    if plan.workers > 1 and settings.storage_uri == "memory://":
        remedy = "set SSE_STORAGE_URI to redis://..., or use one worker (-w 1, WEB_CONCURRENCY=1)"
        if "sse_channels.channels" in current_app.view_functions:
            return fail("workers", f"{plan.workers} with separate channels: most readers get nothing", remedy)
        text = f"{plan.workers} with separate counts: each client's limits are {plan.workers} times as high"
        return warn("workers", text, remedy)
    return ok("workers", f"{plan.workers}, counting {'alone' if plan.workers == 1 else 'together'}")


def _recordings(plan: Plan, settings: Settings) -> Finding:
    if not settings.resume_ttl:
        return ok("recordings", "none: SSE_RESUME_TTL is 0")
    if settings.storage_uri != "memory://":
        return ok("recordings", "in the shared store, for every process")
    if plan.workers == 1:
        return ok("recordings", "in the memory of the one process, lost when it ends")
    return fail(
        "recordings",
        f"responses are not recorded: {plan.workers} workers could not read each other's",
        "set SSE_STORAGE_URI to redis://..., use one worker, or set SSE_RESUME_TTL to 0",
    )


def _connections(plan: Plan, settings: Settings) -> Finding:
    room, streams = plan.worker_connections, settings.max_streams
    if streams and room >= streams + CONNECTION_ROOM:
        return ok("worker connections", f"{room}, above the {streams} of SSE_MAX_STREAMS")
    if streams:
        remedy = f"worker_connections = {streams + CONNECTION_ROOM} or more, or a lower SSE_MAX_STREAMS"
    else:
        remedy = f"set SSE_MAX_STREAMS to {max(room - CONNECTION_ROOM, 1)} or less: then it is refused with a response"
    return warn("worker connections", f"with {room} open, the next hangs unanswered, health checks too", remedy)


def _restart(plan: Plan, settings: Settings) -> Finding:
    left = plan.graceful_timeout - plan.keepalive - WORKER_POLLS - DRAIN_WRITE_WINDOW
    if not plan.ends_streams:
        return warn("restart", "open streams are killed", "call sse.end_with_worker() in gunicorn's post_worker_init")
    if left < DRAIN_EVENT_WINDOW:
        return warn(
            "restart",
            f"streams cannot end with an error event within {plan.graceful_timeout} s",
            f"graceful_timeout = {plan.keepalive + WORKER_POLLS + DRAIN_WRITE_WINDOW + 20:g} gives them 20 s",
        )
    return ok("restart", f"streams have {left:g} s")


def _control_socket(plan: Plan, settings: Settings) -> Finding:
    if plan.has_control_socket:
        return warn("control socket", "instances of one user take it from each other", "control_socket_disable = True")
    return ok("control socket", "none")


def _files(plan: Plan, settings: Settings) -> Finding:
    needed = 2 * (settings.max_streams or plan.worker_connections) + FILE_ROOM
    if plan.files != resource.RLIM_INFINITY and plan.files < needed:
        return fail(
            "file descriptors",
            f"{plan.files}, and the streams may need {needed}",
            f"ulimit -Hn {needed} before gunicorn, LimitNOFILE={needed} for systemd, or a lower SSE_MAX_STREAMS",
        )
    return ok("file descriptors", "enough for all streams")


def _pitfalls(plan: Plan, settings: Settings) -> Iterator[Finding]:
    """Yield warnings of options that do not go well with streams."""
    if plan.reuse_port:
        yield warn(
            "reuse port",
            "connections that wait in the queue of a worker are reset when it stops, at each reload",
            "no --reuse-port: workers accept from one socket, and streams are spread by their number",
        )
    if plan.has_http_2:
        yield warn(
            "HTTP/2",
            "gunicorn serves one stream of a connection at a time, so a browser's other requests wait for it",
            'leave HTTP/2 to a proxy in front; http_protocols = "h1"',
        )
    if settings.metrics and plan.max_requests and not plan.handles_child_exit:
        yield warn(
            "max_requests",
            "every worker that ends leaves files in PROMETHEUS_MULTIPROC_DIR, which each scrape reads",
            "max_requests = 0, or child_exit as in the gunicorn.conf.py of this service",
        )
