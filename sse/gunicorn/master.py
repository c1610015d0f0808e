"""Reload gunicorn without a pause, and only onto code and settings that start.

Runs in gunicorn's master, so gunicorn.conf.py loads this file by its path, and it imports nothing of the package: a
module that stays in the master would be the old one for the workers of the next reload.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import gevent
from gevent.monkey import get_original

#: Seconds that the new code may take to be loaded in a check, and that new workers may take to serve.
PATIENCE = 30.0
#: Seconds between two looks at what other processes have done.
INTERVAL = 0.05
_METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

State = Literal["done", "pending", "failed", "stopping"]


class Guard:
    """Handles the signals with which gunicorn's master is reloaded and stopped, in front of gunicorn's own handlers.

    Workers inherit it, and find it as the handler of SIGHUP. They share a file, to which the master appends the number
    of each generation of workers that a reload begins, and `stop`. Each new worker appends what has become of it,
    behind the number of its generation: how many are needed, if it serves, or `failed` and its process ID.

    :param log: gunicorn's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._pid = os.getpid()
        self._file = tempfile.TemporaryFile(buffering=0)
        # Each write goes behind all others, whatever process writes; the system gives such files no mode of Python's.
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)
        self._is_due = self._is_stopping = False
        #: Counts the reloads; a worker keeps the number, and the time, with which it was started.
        self.generation = 0
        self._reloaded = -PATIENCE
        self._handlers: dict[int, Any] = {}
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._handlers[number] = signal.signal(number, self)
        self._write("0")

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._pid:
            # A worker that does not yet handle signals itself: in gunicorn's hands, the signal would be lost.
            if number != signal.SIGHUP:
                sys.exit(0)
        elif number == signal.SIGHUP:
            self._is_due = True
            # The handler may run in the event loop, where nothing may wait.
            gevent.spawn(self._reload, frame)
        else:
            self._is_stopping = True
            self._write("stop")
            self._handlers[number](number, frame)

    def _reload(self, frame: FrameType | None) -> None:
        # A worker that was forked before this began has a copy of the greenlet.
        while self._is_due and os.getpid() == self._pid:
            self._is_due = False
            problem = check_app(lambda: self._is_stopping)
            if self._is_stopping:
                return
            # After another signal the code may have changed; both are one reload, for the workers of the first would be
            # stopped before those of the second serve.
            if self._is_due:
                continue
            if problem:
                self._log.error("Reload refused, the old workers keep serving: %s", problem)
                continue
            self.generation += 1
            self._reloaded = time.monotonic()
            self._write(str(self.generation))
            self._handlers[signal.SIGHUP](signal.SIGHUP, frame)

    def _write(self, word: str) -> None:
        self._file.write(f"{word} ".encode())

    def _read(self) -> tuple[int, list[str]]:
        """Return the generation that was begun last, and what has become of its workers."""
        descriptor = self._file.fileno()
        words = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode().split()
        generation = max(int(word) for word in words if word.isdecimal())
        prefix = f"{generation}:"
        return generation, [word.removeprefix(prefix) for word in words if word == "stop" or word.startswith(prefix)]

    def state(self) -> State:
        """Return how far the last reload is."""
        _, words = self._read()
        if "stop" in words:
            return "stopping"
        if any(word.startswith("failed") for word in words):
            return "failed"
        serving = [int(word) for word in words]
        return "done" if serving and len(serving) >= serving[0] else "pending"

    def is_replaced(self) -> bool:
        """Return whether a reload has begun since this worker was started."""
        return self._read()[0] != self.generation

    def is_fatal(self, error: Exception) -> bool:
        """Record that this worker could not start; return whether the master stops for it."""
        word = f"failed:{os.getpid()}"
        if self.state() != "failed":
            self._write(f"{self.generation}:{word}")
        _, words = self._read()
        # Of several workers one is enough: gunicorn shows a traceback for each further one.
        is_first = [each for each in words if each.startswith("failed")][:1] == [word]
        if not self._is_reloading():
            return is_first
        self._log.error("Reload failed, the old workers keep serving: Worker failed to boot: %r", error, exc_info=error)
        return False

    def serve(self, workers: int) -> None:
        """Record that this worker serves, and let it stop only when that is due.

        On a reload gunicorn stops the old workers when the new ones have begun to start; they wait until those serve.

        :param workers: how many are needed.
        """
        stop: Any = signal.getsignal(signal.SIGTERM)
        is_waiting = False

        def wait() -> None:
            generation, deadline = -1, 0.0
            while self.is_replaced() and (state := self.state()) in ("pending", "failed"):
                if (last := self._read()[0]) != generation:
                    generation, deadline = last, time.monotonic() + PATIENCE
                if state == "pending" and time.monotonic() > deadline:
                    break
                gevent.sleep(INTERVAL)
            stop(signal.SIGTERM, None)

        def on_signal(number: int, frame: FrameType | None) -> None:
            nonlocal is_waiting
            if not self.is_replaced():
                stop(number, frame)
            elif not is_waiting:
                is_waiting = True
                gevent.spawn(wait)

        signal.signal(signal.SIGTERM, on_signal)
        if self._is_reloading():
            self._write(f"{self.generation}:{workers}")
            gevent.spawn(self._stop_with_others, stop)

    def _is_reloading(self) -> bool:
        return time.monotonic() < self._reloaded + PATIENCE

    def _stop_with_others(self, stop: Any) -> None:
        """Stop this new worker if another new one does not start: the old ones keep serving then."""
        while self._is_reloading() and not self.is_replaced():
            if (state := self.state()) == "failed":
                stop(signal.SIGTERM, None)
            if state != "pending":
                return
            gevent.sleep(INTERVAL)


def check_app(is_stopping: Callable[[], bool]) -> str:
    """Return why gunicorn would not start with its present arguments, empty if it would.

    :param is_stopping: whether that is of no interest any more.
    """
    with tempfile.TemporaryDirectory() as directory:
        # The counts of the workers stay untouched, and what the check counts is deleted.
        env = {name: value for name, value in os.environ.items() if name not in (_METRICS_DIRECTORY, "LISTEN_FDS")}
        output = Path(directory, "output")
        command = ["-m", "gunicorn", "--check-config", *sys.argv[1:]]
        status = _run(command, {**env, "TMPDIR": directory}, output, is_stopping)
        if status == 0:
            return ""
        lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return f"not loaded within {PATIENCE:g} s" if status is None else [*lines[-1:], f"exit status {status}"][0]


def _run(arguments: list[str], env: dict[str, str], output: Path, is_stopping: Callable[[], bool]) -> int | None:
    """Return the exit status of a Python with these arguments, None if it takes too long or is not needed any more.

    Not with `subprocess`: gevent's would take the ends of all children of this process, which gunicorn must get. And
    with the system's functions: while others ran, gunicorn might get the end of this one.
    """
    spawn, waitpid = get_original("os", ["posix_spawn", "waitpid"])
    create = os.O_WRONLY | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(output), create, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    pid = spawn(sys.executable, [sys.executable, *arguments], env, file_actions=actions)
    deadline = time.monotonic() + PATIENCE
    sleep = get_original("time", "sleep")
    while time.monotonic() < deadline and not is_stopping():
        ended, status = waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        sleep(INTERVAL)
    os.kill(pid, signal.SIGKILL)
    waitpid(pid, 0)
    return None
