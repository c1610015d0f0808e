"""Measure what recording costs: plain streams, recorded ones in memory and in Redis, and resumed ones.

Beside them, where npm can install it, a forwarder on Node.js with vercel's `resumable-stream` and the same Redis.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..support.program import RedisServer
from ..support.service import Process, Service
from .__main__ import PASSCODE, _client, _raise_file_limit, _settings
from .client import PROMPT, Door, run
from .load import LOADS, WARM_UP, Load
from .meter import Meter
from .table import _align
from .upstream import Upstream

PEER = Path(__file__).parent / "resumable"


@dataclass(frozen=True, kw_only=True)
class RecordedDoor(Door):
    """A door whose streams are recorded."""

    def request(self, path: str) -> bytes:
        call = {"targetUrl": f"http://127.0.0.1:{self.upstream}{path}", "passcode": self.passcode, "resume": 300}
        body = json.dumps({**call, "header": {"Content-Type": "application/json"}, "body": PROMPT})
        lines = ["POST /forward-sse HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", body]).encode()


@dataclass(frozen=True, kw_only=True)
class ResumedDoor(Door):
    """A door at which streams are read that have been recorded."""

    #: Where the recording of each path is.
    places: Mapping[str, str] = field(default_factory=dict)

    def request(self, path: str) -> bytes:
        lines = [f"GET {self.places[path]}?offset=0&live=tail HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        return "\r\n".join([*lines, f"Authorization: Bearer {self.passcode}", "Connection: close", "", ""]).encode()


def record(door: RecordedDoor, load: Load) -> dict[str, str]:
    """Record the streams of a load, and return where they are."""
    places = {}
    for stream in range(load.streams):
        connection = http.client.HTTPConnection("127.0.0.1", door.port)
        _, _, body = door.request(load.path(stream)).partition(b"\r\n\r\n")
        connection.request("POST", "/forward-sse", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        places[load.path(stream)] = response.headers["Location"]
        response.read()
        connection.close()
    return places


@contextmanager
def _redis() -> Iterator[RedisServer]:
    with TemporaryDirectory() as directory:
        server = RedisServer(shutil.which("redis-server") or "redis-server", Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def peer(stack: ExitStack, url: str, *arguments: str) -> tuple[int, int] | None:
    """Start the peer, and return its port and process; None where it cannot be installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    directory = Path(stack.enter_context(TemporaryDirectory()))
    for source in PEER.iterdir():
        shutil.copy(source, directory)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    if subprocess.run(command, cwd=directory, capture_output=True, timeout=120).returncode:
        return None
    process = stack.enter_context(Process([node, "server.mjs", url, *arguments], cwd=directory))
    return int(process.wait_log(r"Listening at: (\d+)")[1]), process.pid


Row = tuple[str, float | None, float | None, str]


def rows(upstream: Upstream, client: Executor, load: Load) -> Iterator[Row]:
    """Yield each kind of stream with its CPU time per event in µs, that of Redis, and what was wrong with it."""

    def measure(name: str, door: Door, load: Load) -> Row:
        print(f"\r{name} ", end="", file=sys.stderr, flush=True)
        client.submit(run, door, WARM_UP if not isinstance(door, ResumedDoor) else load).result()
        meter = Meter(server.pid)
        before = meter.cpu()
        result = client.submit(run, door, load).result()
        after, events = meter.cpu(), max(result.events, 1)
        store = None if before is None or after is None else (after - before) / events * 1e6
        return name, None if result.cpu is None else result.cpu / max(result.cpu_events, 1) * 1e6, store, result.wrong

    burst = Load(streams=min(load.streams, 100), at_once=20, events=load.events)
    with ExitStack() as stack:
        server = stack.enter_context(_redis())
        for name, extra in (("memory", {}), ("Redis", {"SSE_STORAGE_URI": server.url})):
            settings: dict[str, Any] = {**_settings(upstream), **extra}
            service = stack.enter_context(Service("--workers", "1", **settings))
            at: dict[str, Any] = {
                "port": service.port,
                "upstream": upstream.port,
                "pid": service.pid,
                "passcode": PASSCODE,
            }
            yield measure(f"plain ({name})", Door(name=name, **at), load)
            door = RecordedDoor(name=name, **at)
            yield measure(f"recorded in {name}", door, load)
            yield measure(f"resumed from {name}", ResumedDoor(name=name, places=record(door, burst), **at), burst)
            service.stop()
        for name, arguments in (("Node, plain", ["plain"]), ("Node, resumable-stream", [])):
            found = peer(stack, server.url, *arguments)
            if found is not None:
                yield measure(
                    name, Door(name=name, port=found[0], upstream=upstream.port, pid=found[1], passcode=PASSCODE), load
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return 1 if a stream was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.durable", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the streams and events; default 1")
    scale = parser.parse_args(arguments).scale
    _raise_file_limit()
    lines, faults = [["streams", "CPU µs/event", "of plain", "Redis µs/event"]], []
    first: dict[Any, Any] = {}
    with Upstream() as upstream, _client() as client:
        for name, cpu, store, wrong in rows(upstream, client, LOADS["llm"].scaled(scale)):
            if wrong:
                faults.append(f"WRONG {name}: {wrong}")
            engine = "Node" if name.startswith("Node") else name.rpartition(" ")[2].strip("()")
            plain = first.setdefault(engine, cpu)
            ratio = "-" if cpu is None or not plain else f"{cpu / plain:.2f}"
            spent = "-" if store is None else f"{store:.2f}"
            lines.append([name, "-" if cpu is None else f"{cpu:.1f}", ratio, spent])
    print("\r\033[K", end="", file=sys.stderr)
    print("\n".join(["".join(_align(lines)), "", f"Python {platform.python_version()}, {platform.machine()}."]))
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
