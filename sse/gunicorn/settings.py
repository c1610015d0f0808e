"""gunicorn's settings for long streams: `from sse.gunicorn.settings import *` in a site's gunicorn.conf.py."""

# The first lines, before anything else is imported: a module that took `socket` earlier would keep the blocking one.
from gevent import monkey

monkey.patch_all()

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # without it, an older one fails at an import
    sys.exit(f"flask-sse-relay needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import atexit
import errno
import gc
import importlib.util
import itertools
import logging
import mmap
import os
import resource
import runpy
import shutil
import signal
import socket
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from gunicorn.workers.ggevent import GeventWorker

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
#: Prefix of a directory that this file makes.
TEMP_PREFIX = "sse-metrics-"


def _setting(key: str) -> str:
    """Return a setting of the service as text, "" if it is not set; see `_load` for why it is read here."""
    value = os.environ.get(f"FLASK_{key}", "")
    path = os.environ.get("SSE_CONFIG")
    if not value and path:
        try:
            with open(path, "rb") as file:
                value = str(tomllib.load(file).get(key, ""))
        except OSError as error:
            sys.exit(f"SSE_CONFIG names {path}, which cannot be read: {error.strerror}")
        except tomllib.TOMLDecodeError as error:
            sys.exit(f"SSE_CONFIG names {path}, which is not TOML: {error}")
    return value


def _load(name: str) -> dict[str, Any]:
    """Return the names of a file of the package, which is read anew at each reload.

    It is not imported: what this process imports of the service would stay in it over a SIGHUP, and the new workers
    would run the old code.
    """
    package = importlib.util.find_spec("sse")
    if package is None or package.origin is None:
        sys.exit("the package sse is not installed: pip install flask-sse-relay, or start gunicorn in its directory")
    return runpy.run_path(str(Path(package.origin).parent / name))


def _has_shared_store() -> bool:
    """Return whether `SSE_STORAGE_URI` names a store that processes share."""
    uri = _setting("SSE_STORAGE_URI")
    return "://" in uri and "memory://" not in uri


def _cpu_count() -> int:
    # Those that this process may use, if the system shows them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """The service's worker, which is made for streams; the master imports no more of it, see `_load`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loads, self.slot = _loads, next(_slots) % (len(_loads) // 4)

    def init_process(self) -> None:
        """Become that worker, in its process."""
        from sse.compat.gunicorn import setting_error
        from sse.gunicorn import StreamWorker
        from sse.settings import SettingError

        self.__class__ = StreamWorker
        handler: Any = signal.getsignal(signal.SIGHUP)
        self.guard = handler if hasattr(handler, "is_fatal") else None
        try:
            self.init_process()
        except Exception as error:
            if self.guard is not None and not self.is_serving and not self.guard.is_fatal(error):
                sys.exit(1)
            if isinstance(error, SettingError):
                raise setting_error(error) from None
            raise


# How many connections each worker has open, so that they get their shares.
_loads = mmap.mmap(-1, 4 * 256)
_slots = itertools.count()

# A stream needs a greenlet at most, not a thread or a process.
worker_class = Worker

# With memory:// the counts of throttle and leases are one process's own, so there is one. A store is shared by one
# process a core. WEB_CONCURRENCY or -w change that.
workers = int(os.environ.get("WEB_CONCURRENCY") or (_cpu_count() if _has_shared_store() else 1))

# Connections of a worker. It is a silent wall, health check included, so it stays above SSE_MAX_STREAMS, which
# refuses with a response.
worker_connections = 10_000

# A stream takes two file descriptors, and shells and systemd give 1,024 unless more are configured.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_needed = min(2 * worker_connections + 1000, _hard if _hard != resource.RLIM_INFINITY else 1 << 20)
if resource.RLIM_INFINITY != _soft < _needed:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_needed, _hard))

# Connections that wait to be accepted: 5,000 at once were all served 2.6 times as soon as with 128.
backlog = 2048

# Bytes of a request line, as many as gunicorn can: a prompt in the query of an EventSource is long.
limit_request_line = 8190

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


def _delete_metrics(pid: int) -> None:
    # Workers inherit this, and are not whom it is for.
    if os.getpid() == pid:
        shutil.rmtree(os.environ[METRICS_DIRECTORY], ignore_errors=True)


# Where prometheus-client keeps what the workers count; it looks for the name when it is imported. One worker needs it
# too, for a reload has two at a time, and should lose no count. It is fresh, for a killed run may have left files; when
# this file is read again, at a SIGHUP, it is there already.
if _setting("SSE_METRICS").lower() == "true" and not os.environ.get(METRICS_DIRECTORY):
    os.environ[METRICS_DIRECTORY] = tempfile.mkdtemp(prefix=TEMP_PREFIX)
    # A master that does not get as far as on_exit: the port is taken, or --check-config.
    atexit.register(_delete_metrics, os.getpid())


def _own_metrics() -> str | None:
    """Return the directory of the counts, unless the operator named it or there is none."""
    path = os.environ.get(METRICS_DIRECTORY, "")
    return path if os.path.basename(path).startswith(TEMP_PREFIX) else None


def on_starting(server: Any) -> None:
    """Write log lines in the background, and log what to do about a port that is in use."""
    in_background = _load("relay/output.py")["in_background"]

    def report(count: int) -> None:
        server.log.warning("%d log lines were lost because their reader did not keep up", count)

    for name in ("gunicorn.error", "gunicorn.access"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(in_background(handler.stream, report))
    if not ({"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ) or server.cfg.reuse_port):
        for address in server.cfg.bind:
            _check_port(server, address)


def _check_port(server: Any, address: str) -> None:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not port.isdecimal() or "://" in host:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                server.log.error("Port %s is in use: stop what listens there, or set PORT or -b to another", port)


def post_fork(server: Any, worker: Any) -> None:
    """Go on with the counts of a worker that has ended."""
    if directory := os.environ.get(METRICS_DIRECTORY):
        _load("compat/prometheus_client.py")["adopt_counts"](directory)


def child_exit(server: Any, worker: Any) -> None:
    """Keep the counts of a worker that has ended, also of one that was killed, and forget its open streams."""
    if hasattr(worker, "slot"):
        worker.loads[4 * worker.slot : 4 * worker.slot + 4] = bytes(4)
    if directory := os.environ.get(METRICS_DIRECTORY):
        _load("compat/prometheus_client.py")["keep_counts"](directory, worker.pid)


def pre_exec(server: Any) -> None:
    """Let the next master (SIGUSR2) make its own directory: ours ends with us."""
    from sse.compat.gunicorn import original_environment

    if _own_metrics():
        original_environment(server.cfg).pop(METRICS_DIRECTORY, None)


def on_exit(server: Any) -> None:
    """Leave nothing behind."""
    if path := _own_metrics():
        shutil.rmtree(path, ignore_errors=True)


def when_ready(server: Any) -> None:
    """Guard reloads, let the workers count, and warn of several workers without a shared store."""
    _load("gunicorn/master.py")["Guard"](server.log)
    if path := _own_metrics():
        # The workers may run as another user (-u, -g).
        os.chown(path, server.cfg.user, server.cfg.group)
    if server.cfg.workers > 1 and not _has_shared_store():
        server.log.warning(
            "%d workers, each with counts of its own: the limits of a client are as many times as high. Set "
            "SSE_STORAGE_URI to redis://..., or use one worker",
            server.cfg.workers,
        )


def post_worker_init(worker: Any) -> None:
    """Let streams end politely before a worker that stops is killed, and garbage be looked for more rarely."""
    from sse import end_with_worker

    if "sse" in getattr(worker.wsgi, "extensions", ()):
        end_with_worker(worker.wsgi, worker)
    else:
        worker.log.warning(
            "%s is no Flask app with SSE, so a restart cuts open streams: call end_with_worker in post_worker_init",
            type(worker.wsgi).__name__,
        )
    # To look at all objects takes tens of milliseconds, in which no event passes: those that stay are left out, and the
    # others, of which few are garbage in circles, are looked at a tenth as often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
