"""Measure what channels cost: ours in memory and in Redis, Flask-SSE, sse-starlette's broadcast, and nginx with nchan.

All run at once, each in processes of its own, and are measured in turn, several times; the medians are printed. The
readers are one other process, this one. A server that keeps an event from a reader shows WRONG, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from sysconfig import get_path
from tempfile import TemporaryDirectory
from typing import Any

from ..support.program import free_port
from ..support.service import ROOT, Process, Service, environment
from .__main__ import _raise_file_limit
from .audience import Audience, Server, Taken, Wrong, attend
from .durable import _redis
from .table import _align

PEERS = Path(__file__).parent / "peers"
#: Where Debian's libnginx-mod-nchan puts it.
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
#: What the peers need beside our own test requirements; uvicorn is faster with the last two.
PACKAGES = ("Flask-SSE==1.0.0", "six", "uvloop", "httptools")
#: Seconds after which no further round begins.
LAST_START = 60.0
EVENTS = 20
#: What is aimed at: KiB of a silent reader, and how many times nchan's time.
MOST_MEMORY, OF_NCHAN = 12.0, 2.0
#: Readers below which the figures show more of publishing than of readers.
ENOUGH = 500

Rounds = dict[str, list[Taken]]


def _environment(directory: Path) -> str:
    """Make a throw-away environment with the peers' packages beside ours, and return its Python; "": not to be had."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *PACKAGES]
    if subprocess.run(command, capture_output=True, timeout=60).returncode:
        return ""
    site = next((directory / "lib").glob("python*/site-packages"))
    # The same gunicorn, gevent, redis and Flask for all.
    (site / "ours.pth").write_text(get_path("purelib") + "\n")
    return str(python)


def _process(stack: ExitStack, command: Sequence[str], listening: str, **variables: str) -> tuple[int, int]:
    process = stack.enter_context(Process(command, env=environment({}, variables), cwd=ROOT))
    return int(process.wait_log(listening, 20)[1]), process.pid


def _nchan(stack: ExitStack, nginx: str) -> Server:
    directory, port = Path(stack.enter_context(TemporaryDirectory())), free_port()
    # The worker may be another user.
    directory.chmod(0o755)
    text = (PEERS / "nchan.conf").read_text().replace("@MODULE@", str(NCHAN)).replace("@PORT@", str(port))
    (directory / "nginx.conf").write_text(text)
    process = stack.enter_context(Process([nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]))
    return Server(name="nginx with nchan", port=port, pid=process.pid)


def servers(stack: ExitStack, readers: int) -> Iterator[Server | str]:
    """Start each server, to run until the stack is closed; a string names one that cannot be had."""
    store = stack.enter_context(_redis())
    for name, uri in (("ours, memory", "memory://"), ("ours, Redis", store.url)):
        settings: dict[str, Any] = {"SSE_MAX_READERS_PER_CLIENT": 2 * readers, "SSE_STORAGE_URI": uri}
        ours = stack.enter_context(Service("-w", "1", app="tests.benchmark.peers.ours:app", **settings))
        yield Server(name=name, port=ours.port, pid=ours.pid, store=store.pid if uri == store.url else None)
    python = _environment(Path(stack.enter_context(TemporaryDirectory())))
    if python:
        command = [python, "-m", "gunicorn", "tests.benchmark.peers.flask_sse_site:app", "-k", "gevent", "-w", "1"]
        options = ["--worker-connections", str(2 * readers), "-b", "127.0.0.1:0", "-c", os.devnull]
        listening = r"Listening at: http://127\.0\.0\.1:(\d+)"
        port, pid = _process(stack, [*command, *options], listening, FLASK_REDIS_URL=store.url)
        yield Server(name="Flask-SSE", port=port, pid=pid, store=store.pid)
        command = [python, "-m", "uvicorn", "tests.benchmark.peers.broadcast:app", "--port", "0", "--no-access-log"]
        port, pid = _process(stack, command, r"running on http://127\.0\.0\.1:(\d+)")
        yield Server(name="sse-starlette", port=port, pid=pid)
    else:
        yield "Flask-SSE and sse-starlette: pip could not install " + " ".join(PACKAGES)
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx and NCHAN.exists():
        yield _nchan(stack, nginx)
    else:
        yield "nginx with nchan: Debian's libnginx-mod-nchan is not installed"


def _warm_up(servers: Sequence[Server]) -> dict[str, tuple[int, int]]:
    """Let each server serve a few readers, and return what memory each takes without any."""
    for server in servers:
        with Audience(server, 20) as audience:
            audience.wait_ready()
    # After all of them, for what one shares with another counts half for each.
    return {server.name: server.memory() for server in servers}


def measure(found: Sequence[Server], readers: int, rounds: int, events: int) -> tuple[Rounds, list[str]]:
    """Measure the servers in turn, round after round, and return what each has taken, and what was wrong."""
    taken: Rounds = {server.name: [] for server in found}
    faults: list[str] = []
    begun = time.monotonic()
    empty = _warm_up(found)
    for number in range(rounds):
        if number and time.monotonic() - begun > LAST_START * number / (number + 1):
            break
        for server in found:
            print(f"\rround {number + 1}, {server.name}\033[K", end="", file=sys.stderr, flush=True)
            try:
                taken[server.name].append(attend(server, readers, events, empty[server.name]))
            except (Wrong, OSError) as error:
                faults.append(f"{server.name}: {error!r}")
    print("\r\033[K", end="", file=sys.stderr)
    return taken, faults


def figures(rounds: Sequence[Taken]) -> list[float]:
    """Return the medians: µs of the server, µs of its store, ms until the last reader, KiB of both."""
    return [
        median(taken.cpu[0] for taken in rounds) * 1e6,
        median(taken.cpu[1] for taken in rounds) * 1e6,
        median(delay for taken in rounds for delay in taken.delays) * 1e3,
        median(taken.memory[0] for taken in rounds) / 1024,
        median(taken.memory[1] for taken in rounds) / 1024,
    ]


TITLES = ["server", "CPU µs/event and reader", "Redis µs", "last reader ms", "KiB/silent reader", "Redis KiB"]


def table(values: dict[str, list[float]], wrong: Sequence[str]) -> str:
    """Return the figures as a table."""
    lines = [TITLES]
    for name, row in values.items():
        lines.append([name, *(f"{value:.{digits}f}" for value, digits in zip(row, (1, 1, 0, 1, 1), strict=True))])
    lines.extend([name, *["WRONG"] * (len(TITLES) - 1)] for name in wrong)
    return _align(lines)


def goals(values: dict[str, list[float]]) -> Iterator[str]:
    """Yield for each of our servers which goal it reaches; the store's part counts."""
    costs = {name: (row[0] + row[1], row[2]) for name, row in values.items()}
    for name in [name for name in values if name.startswith("ours")]:
        for part, unit in enumerate(("CPU", "time until the last reader")):
            own = costs[name][part]
            peers = [costs[peer][part] for peer in ("Flask-SSE", "sse-starlette") if peer in costs]
            if peers:
                yield f"{name}, {unit} below the Python peers': {_word(own < min(peers))}"
            if "nginx with nchan" in costs:
                times = own / costs["nginx with nchan"][part]
                yield f"{name}, {unit} within {OF_NCHAN:.0f} times nchan's: {_word(times <= OF_NCHAN)} ({times:.1f})"
        memory = values[name][3] + values[name][4]
        yield f"{name}, at most {MOST_MEMORY:.0f} KiB for a silent reader: {_word(memory <= MOST_MEMORY)}"


def _word(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return 1 if a server was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.channels", description=__doc__)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="fewer are made where they would take too long")
    parser.add_argument("--events", type=int, default=EVENTS, help="in a round")
    options = parser.parse_args(arguments)
    _raise_file_limit()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        found = list(servers(stack, options.readers))
        gc.freeze()
        running = [server for server in found if isinstance(server, Server)]
        taken, faults = measure(running, options.readers, options.rounds, options.events)
    wrong = [name for name in taken if any(fault.startswith(f"{name}: ") for fault in faults)]
    values = {name: figures(rounds) for name, rounds in taken.items() if name not in wrong}
    print(table(values, wrong))
    rounds = min(map(len, taken.values()), default=0)
    print(f"\n{options.readers} readers, {rounds} rounds of {options.events} events; load {load:.1f} before.")
    machine = f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}.")
    missing = [f"MISSING {name}" for name in found if isinstance(name, str)]
    reached = goals(values) if options.readers >= ENOUGH else ["Too few readers to judge which goal is met."]
    print("\n".join([*reached, *missing, *(f"WRONG {fault}" for fault in faults)]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
