"""Measure what a request consists of: gunicorn, Flask, and what the gateway does, with one worker and with two."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Any

from ..support.service import Service
from .__main__ import NAIVE, PASSCODE, _client, _raise_file_limit, _settings
from .client import Door, run
from .load import LOADS, Load
from .table import _align
from .upstream import Upstream

#: How often each is measured, in turn with the others; the table shows the medians.
ROUNDS = 3
#: The row that the others are compared with.
GATEWAY = "the gateway"


def doors(upstream: Upstream, stack: ExitStack) -> Iterator[Door]:
    """Start all that is measured, from the lowest layer up."""

    def door(name: str, *args: str, passcode: str = PASSCODE, **options: Any) -> Door:
        service = stack.enter_context(Service(*args, **options))
        return Door(name=name, port=service.port, upstream=upstream.port, pid=service.pid, passcode=passcode)

    gevent = ("--worker-class", "gevent")
    floor: dict[str, Any] = {"passcode": "", "env": {"GUNICORN_CMD_ARGS": "--config /dev/null"}}
    yield door("gunicorn, a WSGI function", *gevent, app="tests.benchmark.peers.floor:bare_app", **floor)
    yield door("gunicorn and Flask, a view", *gevent, app="tests.benchmark.peers.floor:app", **floor)
    yield door("the textbook relay", *gevent, root=NAIVE)
    settings = _settings(upstream)
    yield door(GATEWAY, **settings)
    yield door("without a throttle", **{**settings, "SSE_THROTTLE": ""})
    yield door("without metrics", **{**settings, "SSE_METRICS": False})
    yield door("with two workers", "--workers", "2", **settings)


def measure(doors: Sequence[Door], load: Load, client: Executor) -> tuple[dict[str, list[float]], list[str]]:
    """Return µs of CPU time for a request of each in each round, and what was wrong."""
    costs: dict[str, list[float]] = {door.name: [] for door in doors}
    faults = []
    for number in range(ROUNDS + 1):
        for door in doors:
            print(f"\r\033[K{door.name} ", end="", file=sys.stderr, flush=True)
            result = client.submit(run, door, load).result()
            if result.wrong:
                faults.append(f"WRONG {door.name}: {result.wrong}")
            # The first round is not measured: what is set up with the first requests is no cost of the others.
            if number and result.cpu is not None:
                costs[door.name].append(result.cpu / max(len(result.arrivals), 1) * 1e6)
    return costs, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return 1 if a stream was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.layers", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the streams; default 1")
    load = LOADS["short"].scaled(parser.parse_args(arguments).scale)
    _raise_file_limit()
    with Upstream() as upstream, _client() as client, ExitStack() as stack:
        costs, faults = measure(list(doors(upstream, stack)), load, client)
    print("\r\033[K", end="", file=sys.stderr)
    lines = [["a request through", "CPU µs", "lowest", "highest", "of the gateway's"]]
    for name, found in costs.items():
        cells = ["-"] * 4
        if found:
            ratio = statistics.median(found) / statistics.median(costs[GATEWAY])
            cells = [f"{statistics.median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}", f"{ratio:.2f}"]
        lines.append([name, *cells])
    print("\n".join(["".join(_align(lines)), "", f"Python {platform.python_version()}, {platform.machine()}."]))
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
