"""Measures how costs grow: with open streams, with the events of each, and with a store that processes share.

One worker for each measurement, so that nothing is left of the one before. Where the number of streams grows, the
events of all together stay the same, because one core sends no more; where the rate grows, the streams stay the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..support.program import RedisServer
from ..support.service import Service
from .__main__ import PASSCODE, _client, _raise_file_limit, _settings, measure
from .client import Door
from .load import LOADS, WARM_UP, Load
from .meter import Meter
from .plot import curves
from .table import Measured, _align, quantile
from .upstream import Upstream

#: Open streams, with so many events a second of all together.
STREAMS, TOTAL = (200, 1000, 5000, 10_000), 6000
#: Events a second of each stream, with so many streams.
RATES, FEW = (10, 30, 100), 200
#: Seconds for which events come.
SECONDS = 6
#: What the last streams add may be so many times what all add on average: as much as two runs of a load differ.
LINEAR = 1.25

TITLES = ["open streams", "events/s each", "CPU µs/event", "KiB/open stream", "latency µs, p50", "latency µs, p99"]


@dataclass(frozen=True)
class Point:
    """What one load has cost."""

    streams: int
    rate: float
    cpu: float
    memory: float
    p50: float
    p99: float

    def row(self) -> list[str]:
        """Return its line of the table."""
        figures = [f"{self.cpu:.1f}", f"{self.memory:.1f}", f"{self.p50:.0f}", f"{self.p99:.0f}"]
        return [f"{self.streams}", f"{self.rate:g}", *figures]


def loads(scale: float, most: int) -> Iterator[Load]:
    """Yield the loads, those with more and more streams first.

    :param most: streams that the system has descriptors for.
    """
    for streams in STREAMS:
        count = min(most, max(2, round(streams * scale)))
        yield _load(count, TOTAL * scale / count)
    for rate in RATES:
        yield _load(max(2, round(FEW * scale)), rate)


def _load(streams: int, rate: float) -> Load:
    # The first event comes when a stream is opened.
    events = 1 + max(2, round(rate * SECONDS))
    return Load(streams=streams, at_once=streams, events=events, rate=rate, settle=0.5)


def point(load: Load, measured: Measured) -> Point:
    """Return the figures of a load.

    :raises SystemExit: if it was not relayed as it should be, or the system does not say what it cost.
    """
    result = measured.result
    if result.wrong or result.cpu is None or result.memory is None:
        raise SystemExit(f"WRONG with {load.streams} streams: {result.wrong or 'unknown CPU time'}")
    latencies = [(quantile(measured.latencies, hundredths) or 0.0) * 1e6 for hundredths in (50, 99)]
    cpu, memory = result.cpu / max(result.cpu_events, 1) * 1e6, result.memory / load.streams / 1024
    return Point(load.streams, load.rate, cpu, memory, *latencies)


def stores(stack: ExitStack) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Yield each kind of store with the settings for it and its process; Redis where it is installed."""
    yield "memory", {}, None
    if redis := shutil.which("redis-server"):
        server = RedisServer(redis, Path(stack.enter_context(TemporaryDirectory())))
        server.start()
        stack.callback(server.stop)
        yield "Redis", {"SSE_STORAGE_URI": server.url}, server.pid


def requests(upstream: Upstream, client: Executor, scale: float) -> Iterator[list[str]]:
    """Yield what a request costs with each store: the gateway's and the store's CPU time in µs, and the multiple."""
    load, first = LOADS["short"].scaled(scale), 0.0
    with ExitStack() as stack:
        for name, extra, pid in stores(stack):
            with Service("--workers", "1", **{**_settings(upstream), **extra}) as ours:
                door = Door(name="ours", port=ours.port, upstream=upstream.port, pid=ours.pid, passcode=PASSCODE)
                measure(door, WARM_UP.scaled(scale), upstream, client)
                meter = Meter(pid)
                before = meter.cpu() or 0.0
                result = measure(door, load, upstream, client).result
                spent = (meter.cpu() or 0.0) - before
            if result.wrong or result.cpu is None:
                raise SystemExit(f"WRONG with {name}: {result.wrong or 'unknown CPU time'}")
            own, store = (seconds / load.streams * 1e6 for seconds in (result.cpu, spent))
            first = first or own
            yield [name, f"{own:.0f}", f"{store:.0f}", f"{own / first:.2f}"]


def verdicts(points: Sequence[Point]) -> Iterator[str]:
    """Yield for each cost what one more stream adds to it, and whether that grows with the number of streams.

    :param points: from the fewest streams to the most, with as many events a second of all together.
    """
    totals = {
        "µs of CPU a second": [found.cpu * found.rate * found.streams for found in points],
        "KiB": [found.memory * found.streams for found in points],
    }
    for unit, total in totals.items():
        added = [
            (after - before) / (more.streams - less.streams) for less, more, before, after in _steps(points, total)
        ]
        mean = (total[-1] - total[0]) / (points[-1].streams - points[0].streams)
        word = "no faster than linearly" if added[-1] <= LINEAR * mean else "FASTER than linearly"
        last = f"{added[-1]:.1f} from {points[-2].streams} on"
        yield f"One more stream adds {mean:.1f} {unit}, {last}: it grows {word}"


def _steps(points: Sequence[Point], total: Sequence[float]) -> Iterator[tuple[Point, Point, float, float]]:
    for less, more in pairwise(zip(points, total, strict=True)):
        yield less[0], more[0], less[1], more[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.growth", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the streams and events; default 1")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the cost over the number of streams")
    options = parser.parse_args(arguments)
    _raise_file_limit()
    # Two descriptors for a stream, and some for everything else.
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2
    load_average = os.getloadavg()[0]
    points = []
    with Upstream() as upstream, _client() as client:
        for load in loads(options.scale, most):
            print(f"\r{load.streams} streams, {load.rate:g} a second \033[K", end="", file=sys.stderr, flush=True)
            settings: dict[str, Any] = {**_settings(upstream), "SSE_MAX_STREAMS": 0, "SSE_MAX_STREAMS_PER_CLIENT": 0}
            with Service("--workers", "1", "--worker-connections", "20000", **settings) as ours:
                door = Door(name="ours", port=ours.port, upstream=upstream.port, pid=ours.pid, passcode=PASSCODE)
                measure(door, WARM_UP.scaled(options.scale), upstream, client)
                points.append(point(load, measure(door, load, upstream, client)))
        lines = list(requests(upstream, client, options.scale))
    print("\r\033[K", end="", file=sys.stderr)
    print(_align([TITLES, *(found.row() for found in points)]))
    by_streams = points[: len(STREAMS)]
    print("\n" + "\n".join(verdicts(by_streams)))
    if most < max(STREAMS):
        print(f"The system has descriptors for {most} streams in one process.")
    print("\n" + _align([["store", "CPU µs/request", "of the store", "gateway's multiple"], *lines]) + "\n")
    print(f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}; load {load_average:.1f}.")
    if options.plot:
        series = {
            "CPU µs/event": [(found.streams, found.cpu) for found in by_streams],
            "KiB/open stream": [(found.streams, found.memory) for found in by_streams],
        }
        curves(options.plot, "What each event and each stream costs among so many open streams", series)
    return 0


if __name__ == "__main__":
    sys.exit(main())
