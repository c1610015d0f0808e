"""A worker that may open no more files: what it cannot serve it refuses, what is open goes on."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..support.crowd import Crowd, Spring, processor_time
from ..support.service import RawClient, Service, call
from ..support.upstream import Upstream

STREAMS = 20


@contextmanager
def limited(pid: int, left: int) -> Iterator[None]:
    """Leave a process so many descriptors that it may still open."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    # The limit is the first number that is too high; there may be gaps below it.
    numbers = range(1, max(used) + left + 2)
    limit = max(number for number in numbers if number - sum(fd < number for fd in used) == left)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def streaming(**upstreams: str) -> Iterator[tuple[Service, Crowd, int]]:
    """A service with streams that get events, and its worker."""
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with (
        Spring(interval=0.1) as spring,
        Service(SSE_UPSTREAMS={"test": spring.url, **upstreams}, **settings) as service,
        Crowd(service, STREAMS) as crowd,
    ):
        [pid] = service.worker_pids()
        yield service, crowd, pid


def goes_on(crowd: Crowd) -> None:
    """Wait until every stream has got two events more."""
    before = {reader: len(reader.data) for reader in crowd.readers}
    crowd.wait(lambda: all(len(reader.data) > before[reader] + 20 for reader in crowd.readers))


def asked(client: RawClient) -> tuple[int, str | None, Any]:
    head = client.read_head()
    return head.status, head.field("Retry-After"), client.json()["code"]


@pytest.mark.parametrize(
    ("url", "left"),
    [
        pytest.param("http://127.0.0.1:{}", 1, id="an address"),
        pytest.param("http://localhost:{}", 1, id="a name"),
        pytest.param("https://127.0.0.1:{}", 1, id="tls"),
    ],
)
def test_without_descriptors_clients_get_503(url: str, left: int) -> None:
    """It was 502, as if the upstream were not there."""
    with Upstream(tls=url.startswith("https")) as upstream:
        with streaming(other=url.format(upstream.port)) as (service, crowd, pid):
            with limited(pid, left), call(service, "GET", "/upstream/other/") as client:
                assert asked(client) == (503, "1", "at_capacity")
                goes_on(crowd)
            assert crowd.streaming == STREAMS
            with Crowd(service, 1) as one_more:
                assert one_more.streaming == 1
            assert "Traceback" not in service.log()


def test_who_cannot_be_let_in_waits_without_work_for_the_worker() -> None:
    with streaming() as (service, crowd, pid):
        with limited(pid, 0):
            start, began, used = len(service.log()), time.monotonic(), processor_time(pid)
            with call(service, "GET", "/healthz") as waiting:
                # Each attempt in vain is logged: after 10 ms, 20, and so on up to a second.
                for _ in range(8):
                    start = service.wait_log("Too many open files", start=start).end()
                goes_on(crowd)
                elapsed, used = time.monotonic() - began, processor_time(pid) - used
                assert used < elapsed / 2
                assert service.log().count("Too many open files") < 12 + elapsed
                print(f"{elapsed:.1f} s without a descriptor: {used:.2f} s of CPU")
                crowd.leave()
                assert waiting.read_head().status == 200
        with Crowd(service, STREAMS) as again:
            assert again.streaming == STREAMS
        assert "Worker exiting" not in service.log()
