"""Reload gunicorn without a pause, and only onto code and settings that start.

Runs in gunicorn's master, so gunicorn.conf.py loads this file by its path, and it imports nothing of the package: a
module that stays in the master would be the old one for the workers of the next reload.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn.errors import HaltServer

#: Seconds that the new code may take to be loaded in a check, and that new workers may take to serve.
PATIENCE = 30.0
INTERVAL = 0.05
#: Seconds that new workers may take to end if one of them has not started.
STOP_TIME = 5.0
#: What gunicorn's documentation does not name; see tests/compat.
NAMES = ("WORKERS", "kill_worker", "manage_workers", "num_workers", "reap_workers", "reload", "stop", "worker_age")
_METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


def guard_reload(server: Any) -> None:
    """Make SIGHUP try the new code first, and keep old workers serving until new ones do.

    Without the names that it needs of gunicorn's master, a reload stays what gunicorn makes of it.
    """
    if not all(hasattr(server, name) for name in NAMES):
        server.log.warning("This gunicorn reloads in its own way: new code is not tried first")
        return
    reload, manage_workers, stop = server.reload, server.manage_workers, server.stop

    def stop_all(graceful: bool = True) -> None:
        # It raises for each further worker that has not started, and gunicorn shows a traceback of that.
        while True:
            try:
                stop(graceful)
                return
            except HaltServer:
                continue

    def checked_reload() -> None:
        if problem := check_app():
            server.log.error("Reload refused, the old workers keep serving: %s", problem)
            return
        oldest = server.worker_age
        server.manage_workers = lambda: _replace_workers(server, oldest, manage_workers)
        try:
            reload()
        except HaltServer as error:
            server.log.error("Reload failed, the old workers keep serving: %s", error.reason)
            _stop_new(server, oldest)
        finally:
            server.manage_workers = manage_workers

    server.reload, server.stop = checked_reload, stop_all


def check_app() -> str:
    """Return why gunicorn would not start with its present arguments, empty if it would."""
    with tempfile.TemporaryDirectory() as directory:
        # The counts of the workers stay untouched, and what the check counts is deleted.
        env = {name: value for name, value in os.environ.items() if name not in (_METRICS_DIRECTORY, "LISTEN_FDS")}
        output = Path(directory, "output")
        status = _run(["-m", "gunicorn", "--check-config", *sys.argv[1:]], {**env, "TMPDIR": directory}, output)
        if status == 0:
            return ""
        lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return f"not loaded within {PATIENCE:g} s" if status is None else [*lines[-1:], f"exit status {status}"][0]


def _run(arguments: list[str], env: dict[str, str], output: Path) -> int | None:
    """Return the exit status of a Python with these arguments, None if it takes too long.

    Not with `subprocess`: gevent's would take the ends of all children of this process, which gunicorn must get.
    """
    create = os.O_WRONLY | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(output), create, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], env, file_actions=actions)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(INTERVAL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _replace_workers(server: Any, oldest: int, manage_workers: Callable[[], None]) -> None:
    """Wait until the new workers serve, and then stop the old ones.

    :raises HaltServer: if a new worker does not start.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not _is_serving(server, oldest):
        time.sleep(INTERVAL)
        server.reap_workers()
    manage_workers()


def _new_workers(server: Any, oldest: int) -> dict[int, Any]:
    return {pid: worker for pid, worker in server.WORKERS.items() if worker.age > oldest}


def _is_serving(server: Any, oldest: int) -> bool:
    new = _new_workers(server, oldest).values()
    # Until a worker serves, its file has the time of its making by the wall clock, which is far ahead.
    return len(new) >= server.num_workers and all(worker.tmp.last_update() <= time.monotonic() for worker in new)


def _stop_new(server: Any, oldest: int) -> None:
    """Stop the new workers, because gunicorn would stop the old ones when it finds that a new one has not started."""
    number = signal.SIGTERM
    deadline = time.monotonic() + STOP_TIME
    while new := _new_workers(server, oldest):
        for pid in new:
            server.kill_worker(pid, number)
        time.sleep(INTERVAL)
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        with suppress(HaltServer):
            server.reap_workers()
