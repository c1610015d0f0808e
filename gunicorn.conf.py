"""gunicorn's settings for the service; gunicorn reads this file by itself."""

# The first lines, before anything else is imported: a module that took `socket` earlier would keep the blocking one.
from gevent import monkey

monkey.patch_all()

import atexit  # noqa: E402  # patched first, see above
import gc  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
import tomllib  # noqa: E402
from typing import Any  # noqa: E402

from gunicorn.workers.ggevent import GeventWorker  # noqa: E402

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
#: How the name of a directory of our own making begins.
OURS = "sse-metrics-"


def _setting(key: str) -> str:
    """Return a setting of the service as text, "" if it is not set.

    It is read here by hand: what this file imports of the service would stay in the master over a SIGHUP, and the new
    workers would run the old code.
    """
    value = os.environ.get(f"FLASK_{key}", "")
    path = os.environ.get("SSE_CONFIG")
    if not value and path:
        with open(path, "rb") as file:
            value = str(tomllib.load(file).get(key, ""))
    return value


def _has_shared_store() -> bool:
    """Tell whether `SSE_STORAGE_URI` names a store that processes share."""
    uri = _setting("SSE_STORAGE_URI")
    return "://" in uri and "memory://" not in uri


def _cores() -> int:
    # Those that this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """The service's worker, which is made for streams; the master knows no more of it, see `_setting`."""

    def init_process(self) -> None:
        """Become that worker, in its process."""
        from sse.gunicorn import StreamWorker

        self.__class__ = StreamWorker
        self.init_process()


# A stream needs a greenlet at most, not a thread or a process.
worker_class = Worker

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

# Bytes of a request line, as many as gunicorn can: a prompt in an EventSource's query is long.
limit_request_line = 8190

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


def _forget_metrics(pid: int) -> None:
    # Workers inherit this, and are not whom it is for.
    if os.getpid() == pid:
        shutil.rmtree(os.environ[METRICS_DIRECTORY], ignore_errors=True)


# Where prometheus-client keeps what the workers count; it looks for the name when it is imported. One worker needs it
# too, for a reload has two at a time, and should lose no count. It is fresh, for a killed run may have left files; when
# this file is read again, at a SIGHUP, it is there already.
if _setting("SSE_METRICS").lower() == "true" and not os.environ.get(METRICS_DIRECTORY):
    os.environ[METRICS_DIRECTORY] = tempfile.mkdtemp(prefix=OURS)
    # A master that does not get as far as on_exit: the port is taken, or --check-config.
    atexit.register(_forget_metrics, os.getpid())


def _own_metrics() -> str | None:
    """Return the directory of the counts, unless the operator named it or there is none."""
    path = os.environ.get(METRICS_DIRECTORY, "")
    return path if os.path.basename(path).startswith(OURS) else None


def child_exit(server: Any, worker: Any) -> None:
    """Forget the open streams of a worker that has ended, also of one that was killed; its counts stay."""
    if os.environ.get(METRICS_DIRECTORY):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def pre_exec(server: Any) -> None:
    """Let the next master (SIGUSR2) make its own directory: ours ends with us."""
    if _own_metrics():
        server.cfg.env_orig.pop(METRICS_DIRECTORY, None)


def on_exit(server: Any) -> None:
    """Leave nothing behind."""
    if path := _own_metrics():
        shutil.rmtree(path, ignore_errors=True)


def when_ready(server: Any) -> None:
    """Say what limits are worth with several workers and no store, and let the workers count."""
    if path := _own_metrics():
        # The workers may be somebody else's (-u, -g).
        os.chown(path, server.cfg.uid, server.cfg.gid)
    if server.cfg.workers > 1 and not _has_shared_store():
        server.log.warning(
            "%d workers, each with counts of its own: clients may call and stream as often as there are workers. Set "
            "SSE_STORAGE_URI to redis://..., or use one worker",
            server.cfg.workers,
        )


def post_worker_init(worker: Any) -> None:
    """Let streams end politely before a worker that stops is killed, and garbage be looked for more rarely."""
    from sse import end_with_worker

    end_with_worker(worker.wsgi, worker)
    # To look at all objects takes tens of milliseconds, in which no event passes: those that stay are left out, and the
    # others, of which few are garbage in circles, are looked at a tenth as often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
