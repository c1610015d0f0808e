"""gunicorn's settings for the service; gunicorn reads this file by itself."""

# The first lines, before anything else is imported: a module that took `socket` earlier would keep the blocking one.
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  # patched first, see above
import resource  # noqa: E402
import tomllib  # noqa: E402
from typing import Any  # noqa: E402


def _has_shared_store() -> bool:
    """Tell whether `SSE_STORAGE_URI` names a store that processes share.

    It is read here by hand: what this file imports of the service would stay in the master over a SIGHUP, and the new
    workers would run the old code.
    """
    uri = os.environ.get("FLASK_SSE_STORAGE_URI", "")
    path = os.environ.get("SSE_CONFIG")
    if not uri and path:
        with open(path, "rb") as file:
            uri = str(tomllib.load(file).get("SSE_STORAGE_URI", ""))
    return "://" in uri and "memory://" not in uri


def _cores() -> int:
    # Those that this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"

# A stream needs a greenlet, not a thread or a process.
worker_class = "gevent"

# With memory:// the counts of throttle and leases are one process's own, so there is one. A store is shared by one
# process a core. WEB_CONCURRENCY or -w change that.
workers = int(os.environ.get("WEB_CONCURRENCY") or (_cores() if _has_shared_store() else 1))

# Connections of a worker. It is a silent wall, health check included, so it stays above SSE_MAX_STREAMS, which
# refuses with an answer.
worker_connections = 10_000

# A stream takes two file descriptors, and shells and systemd give 1,024 unless they are asked for more.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = min(2 * worker_connections + 1000, _hard if _hard != resource.RLIM_INFINITY else 1 << 20)
if resource.RLIM_INFINITY != _soft < _wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_wanted, _hard))

# Connections that wait to be accepted: 5,000 at once were all served 2.6 times as soon as with 128.
backlog = 2048

# Seconds in which the event loop must show life; it is not a limit on streams.
timeout = 60

# Seconds an idle connection is kept, and seconds in which a request's head must come.
keepalive = 5

# Seconds that open streams have after SIGTERM or SIGHUP before the master kills the worker: they end 8 s earlier.
graceful_timeout = 30

# Requests after which a worker is replaced; 0 is never, for nothing is known to leak. It takes two workers or more: the
# next one is started when the last stream of the old one has ended. The jitter keeps them from stopping all at once.
max_requests = 0
max_requests_jitter = 1000

# It would be one for each user, in the home directory, and instances would take it from each other.
control_socket_disable = True


def when_ready(server: Any) -> None:
    """Say what limits are worth with several workers and no store."""
    if server.cfg.workers > 1 and not _has_shared_store():
        server.log.warning(
            "%d workers, each with counts of its own: clients may call and stream as often as there are workers. Set "
            "SSE_STORAGE_URI to redis://..., or use one worker",
            server.cfg.workers,
        )


def post_worker_init(worker: Any) -> None:
    """Let streams end politely before a worker that stops is killed."""
    from sse import end_with_worker

    end_with_worker(worker.wsgi, worker)
