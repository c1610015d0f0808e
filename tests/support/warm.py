"""A process that has imported the packages a program needs, and forks for each start of it; run by `fork.py`.

Half the time that the service takes to start goes into the import of gunicorn, gevent, Flask and other packages. A
fork is like `python -m <module>` in all that a program sees: arguments, environment, `sys.path`, working directory,
descriptors, signals, limits. It differs in three points: those packages are imported already (for gunicorn patched, as
the service's gunicorn.conf.py does it), the processes of a run share one hash seed, and `/proc/<pid>/cmdline` is this
file's. Before the fork nothing of this project is imported, nor what reads the environment when it is imported, as
gunicorn does.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any

#: By the program: the modules that it imports itself.
PROGRAMS = {"gunicorn": "gunicorn.app.wsgiapp", "flask": "flask.cli"}
#: What the service imports, and sites of the tests.
PACKAGES = """
    certifi decimal email.utils flask flask.cli flask_limiter fractions idna jinja2.ext jwt limits.storage pydantic
    pydantic.json_schema redis redis.cluster redis.sentinel requests tomllib urllib3 uuid werkzeug.serving werkzeug.test
    zoneinfo
"""


def preload(program: str) -> None:
    """Import what a start of the program does."""
    import_module(PROGRAMS[program])
    if program == "gunicorn":
        import_module("gevent.monkey").patch_all()
        import_module("gunicorn.workers.ggevent")
    for name in PACKAGES.split():
        if find_spec(name.partition(".")[0]):
            import_module(name)
    if program == "gunicorn":
        # urllib3 binds a socket when it is imported. A fork would have the same hub, and so the same epoll instance.
        import_module("gevent").get_hub().destroy(destroy_loop=True)
        # gunicorn's defaults are from the environment and the directory in which it is imported: each fork imports it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "gunicorn"]:
            del sys.modules[name]


def serve(control: socket.socket, program: str) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request, and report each end, until `control` ends; return in a fork, with what it becomes."""
    # Taken before gevent patches: its own need a hub, and a process that has one cannot be forked into a fresh one.
    fork, waitpid, poll = os.fork, os.waitpid, select.poll()
    before = os.listdir("/proc/self/fd")
    preload(program)
    assert os.listdir("/proc/self/fd") == before, "a package has left something open"
    poll.register(control, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                pid, report = running.pop(ready)
                poll.unregister(ready)
                os.write(report, b"%d\n" % os.waitstatus_to_exitcode(waitpid(pid, 0)[1]))
                os.close(ready)
                os.close(report)
                continue
            message, descriptors, *_ = socket.recv_fds(control, 1 << 20, 4)
            if not message:
                sys.exit()
            if not (pid := fork()):
                return json.loads(message), descriptors
            *standard, report = descriptors
            for number in standard:
                os.close(number)
            os.write(report, b"%d\n" % pid)
            ended = os.pidfd_open(pid)
            running[ended] = pid, report
            poll.register(ended, select.POLLIN)


def become(start: dict[str, Any], descriptors: list[int], on_interrupt: Any) -> None:
    """Make of a fork what a fresh process is when its module is run."""
    signal.signal(signal.SIGINT, on_interrupt)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, start["files"])
    os.umask(start["umask"])
    os.environ.clear()
    os.environ.update(start["env"])
    time.tzset()
    os.chdir(start["cwd"])
    path = filter(None, start["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [os.getcwd(), *path]
    sys.argv[1:] = start["args"]


if __name__ == "__main__":
    # Ctrl-C is for the tests and what they have started; the end of the tests is the end of this process. Forks do with
    # it what the tests were started to do: a job in the background ignores it.
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0]
    own, module = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    become(*serve(own, module), handler)
    own.detach()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
