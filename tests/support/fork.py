"""Starts of `python -m gunicorn` and `python -m flask` as forks of a process that has their packages in memory."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from . import warm

#: Variables that Python or a library reads before the fork, when it is loaded or imported (OpenTelemetry, by redis).
EARLY = re.compile(r"(PYTHON(?!PATH$)|LD_|GLIBC_|MALLOC_|GEVENT|OPENSSL_|OTEL_|FAKETIME)")
#: With other settings, gunicorn may patch later or not at all.
SETTINGS = Path(__file__).parent.parent.parent / "gunicorn.conf.py"


class Fork:
    """A process that `Warm` has forked; the methods are those of `subprocess.Popen`.

    :param pid: its process id.
    :param report: a pipe that says how it ended.
    """

    def __init__(self, pid: int, report: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._report = report
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when it has ended.

        :raises subprocess.TimeoutExpired: if that takes longer.
        """
        status = self._await(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return status

    def _await(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and _is_ready(self._report, timeout):
                self.returncode = int(os.read(self._report, 100))
                os.close(self._report)
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _is_ready(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


class Warm:
    """The process that forks, one for each program; see `warm.py`.

    :param program: `gunicorn` or `flask`.
    """

    def __init__(self, program: str) -> None:
        #: Early variables that its forks have.
        self.early = early({**os.environ, "PYTHONUNBUFFERED": "1"})
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Larger than an environment.
            self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            command = [sys.executable, warm.__file__, str(theirs.fileno()), program]
            env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | self.early
            self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])

    def start(
        self, args: Sequence[str], env: Mapping[str, str], cwd: Path, stdin: int, stdout: int, stderr: int
    ) -> Fork:
        """Return a process that runs the program with these arguments."""
        mask = os.umask(0)
        os.umask(mask)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)
        message = {"args": args, "env": dict(env), "cwd": str(cwd), "umask": mask, "files": files}
        report, theirs = os.pipe()
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], [stdin, stdout, stderr, theirs])
        finally:
            os.close(theirs)
        return Fork(int(os.read(report, 100)), report)

    def close(self) -> None:
        """End it; its forks go on."""
        self._control.close()
        self._process.wait()


def early(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that would have to be there before the fork."""
    return {name: value for name, value in env.items() if EARLY.match(name)}


#: Programs that are forked, None as long as they are not started; empty where each start is a fresh one.
_programs: dict[str, Warm | None] = {}


@contextmanager
def warm_programs() -> Iterator[None]:
    """Within the block, `warm_program` returns processes."""
    with ExitStack() as stack:
        _programs.update(dict.fromkeys(warm.PROGRAMS))
        stack.callback(_programs.clear)
        yield
        for started in filter(None, _programs.values()):
            stack.callback(started.close)


def warm_program(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Warm | None:
    """Return what starts this command by a fork, or None if only a fresh process is the same."""
    if list(command[:2]) != [sys.executable, "-m"] or command[2] not in _programs:
        return None
    # A module that Python imports at its start, before the program.
    if any(Path(cwd, place, "sitecustomize.py").exists() for place in env.get("PYTHONPATH", "").split(os.pathsep)):
        return None
    if command[2] == "gunicorn" and not _patches_first(command, env, cwd):
        return None
    found = _programs[command[2]] = _programs[command[2]] or Warm(command[2])
    return found if early(env) == found.early else None


def _patches_first(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> bool:
    """Return whether gunicorn reads the service's settings first of all, so that it patches before anything else."""
    named = [Path(value) for option, value in pairwise(command) if option in ("-c", "--config")]
    settings = cwd / (named[-1] if named else "gunicorn.conf.py")
    if "GUNICORN_CMD_ARGS" in env or not settings.exists():
        return False
    return settings == SETTINGS or settings.read_bytes() == SETTINGS.read_bytes()
