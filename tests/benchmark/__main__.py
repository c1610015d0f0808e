"""Measures no relay, the textbook relay, nginx where it is installed, and ours with the same streams: one table.

Three processes: the upstream, the relay, the client. Only the relay's CPU time and memory are counted. Every byte is
compared; a relay that changes, loses or repeats one shows WRONG instead of figures, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..support.program import free_port
from ..support.service import Process, Service
from .client import Door, run
from .load import LOADS, WARM_UP, Load
from .plot import bars
from .table import COLUMNS, OURS, Measured, Row, doubts, quantile, shares, table, wrongs
from .upstream import Upstream

NAIVE = Path(__file__).parent / "naive"
NGINX = Path(__file__).parent / "peers" / "relay.conf"
PASSCODE = "benchmark"


def _settings(upstream: Upstream) -> dict[str, Any]:
    """Return settings with every protection on, and limits that the loads stay below."""
    return {
        "SSE_UPSTREAMS": {"benchmark": f"http://127.0.0.1:{upstream.port}/"},
        "SSE_PASSCODES": {"benchmark": PASSCODE},
        "SSE_THROTTLE": "1000000 per 10 second",
        "SSE_MAX_STREAMS_PER_CLIENT": 2000,
        "SSE_METRICS": True,
    }


def doors(upstream: Upstream) -> Iterator[Door]:
    """Start each relay in turn, and stop it before the next."""
    yield Door(name="direct", port=upstream.port, upstream=upstream.port)
    with Service("--worker-class", "gevent", root=NAIVE) as naive:
        yield Door(name="naive", port=naive.port, upstream=upstream.port, pid=naive.pid, passcode=PASSCODE)
    if nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"):
        with _nginx(nginx, upstream) as (port, pid):
            yield Door(name="nginx", port=port, upstream=upstream.port, pid=pid)
    with Service(**_settings(upstream)) as ours:
        yield Door(name=OURS, port=ours.port, upstream=upstream.port, pid=ours.pid, passcode=PASSCODE)


@contextmanager
def _nginx(nginx: str, upstream: Upstream) -> Iterator[tuple[int, int]]:
    """Run an nginx that passes everything on and checks nothing; give its port and process."""
    port = free_port()
    with TemporaryDirectory() as directory:
        # The worker may be another user.
        Path(directory).chmod(0o755)
        text = NGINX.read_text().replace("@PORT@", str(port)).replace("@UPSTREAM@", str(upstream.port))
        Path(directory, "nginx.conf").write_text(text)
        with Process([nginx, "-p", directory, "-c", "nginx.conf", "-e", "stderr"]) as process:
            process.wait_log("start worker process")
            yield port, process.pid


def measure(door: Door, load: Load, upstream: Upstream, client: Executor) -> Measured:
    """Put a load through a door, and join what the client and the upstream have noted."""
    _, _, cpu = upstream.report()
    result = client.submit(run, door, load).result()
    sent, lags, cpu_after = upstream.report()
    # The first event waits for the relay's set-up; that is another column.
    latencies = [
        came - went
        for stream, arrivals in result.arrivals.items()
        for went, came in list(zip(sent.get(stream, ()), arrivals, strict=False))[1:]
    ]
    return Measured(result=result, latencies=latencies, lag=quantile(lags, 99) or 0.0, upstream_cpu=cpu_after - cpu)


@contextmanager
def _client() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: a stream takes two in the relay."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return 1 if a relay was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the streams and events; default 1")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the figures too, relative to the gateway's")
    options = parser.parse_args(arguments)
    scale: float = options.scale
    _raise_file_limit()
    # Of the minute before; later it is our own as well.
    load_average, cpus = os.getloadavg()[0], os.cpu_count() or 1
    rows: dict[str, Row] = {}
    with Upstream() as upstream, _client() as client:
        for door in doors(upstream):
            measure(door, WARM_UP.scaled(scale), upstream, client)
            row = {}
            for name, load in LOADS.items():
                print(f"\r{door.name}: {name} ", end="", file=sys.stderr, flush=True)
                row[name] = measure(door, load.scaled(scale), upstream, client)
            rows[door.name] = row
    print("\r\033[K", end="", file=sys.stderr)
    print(table(rows))
    if options.plot:
        titles = [column.title for column in COLUMNS if not column.added]
        bars(options.plot, "Cost of each relay, as a multiple of the gateway's", titles, shares(rows))
    print(f"\n{cpus} CPUs ({platform.machine()}), Python {platform.python_version()}, {platform.system()}.")
    if load_average > cpus / 4:
        print(f"Others kept {load_average:.1f} of {cpus} CPUs busy before: latencies and first events say little.")
    faults = [f"{name}, {wrong}" for name, row in rows.items() for wrong in wrongs(row)]
    for line in [
        *(f"WRONG {fault}" for fault in faults),
        *(d for name, row in rows.items() for d in doubts(name, row)),
    ]:
        print(line)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
