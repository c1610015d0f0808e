"""Connections are spread over workers, and none waits long for a worker that does not accept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import AsyncResult
from gevent.pool import Pool
from gunicorn.config import Config

from sse.gunicorn import balance as module
from sse.gunicorn.balance import IMPATIENCE, MAX_WAIT, PAUSE, SLACK, Balance
from sse.gunicorn.worker import StreamWorker

from ..support.ending import EVENT, eventually, silent
from ..support.service import PATIENCE, RawClient, Service, call
from ..support.upstream import Upstream


class Clock:
    """The monotonic clock, which the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def workers(*counts: int) -> list[Balance]:
    """Return one balance for each number of connections, all of which know of each other."""
    loads = bytearray(4 * 8)
    made = [Balance(loads, slot, lambda count=count: count) for slot, count in enumerate(counts)]  # type: ignore[misc]  # mypy infers no type for a default of a lambda
    for balance in made:
        balance.must_wait()
    return made


def test_a_worker_waits_if_another_has_less(clock: Clock) -> None:
    few, many = workers(10, 11 + SLACK)
    clock.now += 1
    assert (few.must_wait(), many.must_wait()) == (False, True)


def test_about_as_many_are_no_reason_to_wait(clock: Clock) -> None:
    assert not any(balance.must_wait() for balance in workers(10, 10 + SLACK))
    assert not any(balance.must_wait() for balance in workers(100, 110))
    assert not any(balance.must_wait() for balance in workers(500))


def test_a_connection_waits_for_a_while_only(clock: Clock) -> None:
    """The other worker may hang."""
    _, many = workers(0, 50)
    clock.now += 1
    began = clock.now
    while many.must_wait():
        clock.now += PAUSE
    assert MAX_WAIT <= clock.now - began < MAX_WAIT + 2 * PAUSE
    assert not many.must_wait()
    clock.now += IMPATIENCE
    assert many.must_wait()


def test_a_worker_that_leaves_is_not_waited_for(clock: Clock) -> None:
    few, many = workers(0, 50)
    few.leave()
    clock.now += 1
    assert not many.must_wait()


def has_started(pid: int) -> bool:
    """Return whether a worker has an event loop."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.readlink(link) == "anon_inode:[eventpoll]" for link in links if link.is_symlink())


def connections(pid: int) -> int:
    """Return how many sockets a process has open."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return sum(os.readlink(link).startswith("socket:") for link in links if link.is_symlink())


def second_of_two(monkeypatch: pytest.MonkeyPatch) -> StreamWorker:
    """Return one of two workers, which serves nothing yet."""
    worker = StreamWorker.__new__(StreamWorker)
    worker.cfg, worker.loads, worker.slot, worker.wsgi, worker.log = Config(), bytearray(8), 1, None, None
    worker.cfg.set("workers", 2)
    monkeypatch.setattr(StreamWorker, "run_hooked", lambda _: None)
    worker.run()
    return worker


def test_connections_of_all_listeners_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listener showed its own, so a worker with many on one seemed to have none when another began."""
    worker = second_of_two(monkeypatch)
    with gevent.socket.socket() as first, gevent.socket.socket() as second:
        servers = [worker.listen(listener, spawn=Pool(10)) for listener in (first, second)]
        busy = servers[0].pool.spawn(gevent.sleep, 60)
        for server in servers:
            server.start()
        assert memoryview(worker.loads).cast("I").tolist() == [0, 2]
        for server in servers:
            server.close()
        busy.kill()


@pytest.mark.parametrize(("others", "accepted"), [(100, 8), (2, 5), (0, 3)])
def test_what_waits_is_accepted_in_one_go(monkeypatch: pytest.MonkeyPatch, others: int, accepted: int) -> None:
    """One look at the listener for each connection took a seventh of a request's time; the other gets its share."""
    worker = second_of_two(monkeypatch)
    memoryview(worker.loads).cast("I")[0] = others + 1
    seen = AsyncResult()

    def serve(*_: object) -> None:
        # The first of them is served when the go is over.
        if not seen.ready():
            seen.set(len(server.pool))
        gevent.sleep(PATIENCE)

    monkeypatch.setattr(StreamWorker, "handle", serve)
    with gevent.socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = worker.listen(listener, spawn=Pool(10))
        for _ in range(8):
            stack.enter_context(gevent.socket.create_connection(listener.getsockname()))
        server.start()
        assert seen.get(timeout=PATIENCE) == accepted
        server.close()
        server.pool.kill()


def test_long_streams_are_spread_over_two_workers(service: Callable[..., Service]) -> None:
    """One worker had nearly all: 87 of 400 was the other's share."""
    count = 200
    with Upstream(silent) as upstream, ExitStack() as stack:
        # Preloaded, so that both begin at once: what one has accepted before the other began does not move.
        settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
        running = service("--workers", "2", "--preload", SSE_UPSTREAMS={"test": upstream.url}, **settings)
        eventually(lambda: all(map(has_started, running.worker_pids())), "a worker has not started")
        opened: list[RawClient] = []

        def some() -> None:
            for _ in range(count // 8):
                client = stack.enter_context(call(running, "GET", "/upstream/test/"))
                client.read_until(EVENT)
                opened.append(client)

        threads = [threading.Thread(target=some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == count
        few, many = sorted(connections(pid) // 2 for pid in running.worker_pids())
        print(f"{few} and {many} of {count} streams")
        assert few >= 0.4 * count


def test_a_worker_that_hangs_does_not_hold_up_the_other(service: Callable[..., Service]) -> None:
    with Upstream(silent) as upstream, ExitStack() as stack:
        running = service(
            "--workers", "2", SSE_UPSTREAMS={"test": upstream.url}, SSE_THROTTLE="", SSE_MAX_STREAMS_PER_CLIENT=0
        )
        hangs, _ = running.worker_pids()
        os.kill(hangs, signal.SIGSTOP)
        try:
            took = []
            for _ in range(20):
                began = time.monotonic()
                stack.enter_context(call(running, "GET", "/upstream/test/")).read_until(EVENT)
                took.append(time.monotonic() - began)
        finally:
            os.kill(hangs, signal.SIGCONT)
        assert sorted(took)[10] < 0.5, took
