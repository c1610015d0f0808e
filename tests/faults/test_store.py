"""The shared store gone, slow, full, read-only or spoilt: no client is refused or let in for that; one log line."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..support.crowd import Crowd, Spring
from ..support.ending import EVENT, eventually
from ..support.program import RedisServer
from ..support.service import ROOT, Service, call
from ..support.upstream import Connection, Upstream, respond

AWAY = "Redis unavailable"
BACK = "Redis recovered"


def status(service: Service, path: str) -> int:
    with call(service, "GET", path) as client:
        found = client.read_head().status
        client.read_body()
        return found


@contextmanager
def using(uri: str, upstream: str, **settings: Any) -> Iterator[Service]:
    table = {"test": upstream}
    with Service("--workers", "1", SSE_UPSTREAMS=table, SSE_STORAGE_URI=uri, **settings) as service:
        yield service


#: The service, but a store that is away is left alone for half a second instead of five.
IMPATIENT = """
import sse.relay.redis
sse.relay.redis.RETRY_INTERVAL = 0.5
from service_app import app
"""


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(IMPATIENT)
    for name, source in [("sse", "sse"), ("gunicorn.conf.py", "gunicorn.conf.py"), ("service_app.py", "app.py")]:
        (tmp_path / name).symlink_to(ROOT / source)
    return tmp_path


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """A way to do harm to the store."""
    connection = redis_server.client()
    yield connection
    connection.close()


@contextmanager
def killed(redis_server: RedisServer, client: Any) -> Iterator[None]:
    os.kill(redis_server.pid, signal.SIGKILL)
    yield
    # It comes back empty.
    redis_server.stop()
    redis_server.start()


@contextmanager
def frozen(redis_server: RedisServer, client: Any) -> Iterator[None]:
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


@contextmanager
def full(redis_server: RedisServer, client: Any) -> Iterator[None]:
    client.config_set("maxmemory", "1")
    yield
    client.config_set("maxmemory", "0")


@contextmanager
def read_only(redis_server: RedisServer, client: Any) -> Iterator[None]:
    # Its own replica, which it never gets to be.
    client.replicaof("127.0.0.1", redis_server.port)
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def spoilt(redis_server: RedisServer, client: Any) -> Iterator[None]:
    """Every key of the gateway becomes something else."""
    keys = client.keys("*")
    assert keys
    for key in keys:
        client.set(key, "spoilt")
    yield
    client.flushall()


@pytest.mark.parametrize("fault", [killed, frozen, full, read_only])
def test_without_redis_each_process_counts_for_itself(
    fault: Callable[..., Any], redis_server: RedisServer, client: Any, impatient: Path
) -> None:
    counts_for_itself(fault, redis_server, client, root=impatient)


def test_foreign_values_under_our_keys_count_as_unavailable(redis_server: RedisServer, client: Any) -> None:
    """The store itself is fine, so every five seconds it is thought to be back."""
    counts_for_itself(spoilt, redis_server, client)


def counts_for_itself(fault: Callable[..., Any], redis_server: RedisServer, client: Any, **options: Any) -> None:
    settings = {"SSE_THROTTLE": "4 per hour", "SSE_MAX_STREAMS_PER_CLIENT": 3, **options}
    with Spring() as spring, using(redis_server.url, spring.url, **settings) as service, Crowd(service, 2) as running:
        with fault(redis_server, client):
            # The two that are open count, as well as the four that may come within an hour from now on.
            with Crowd(service, 1) as third:
                assert third.streaming == 1
                assert status(service, "/upstream/test/") == 429
            spring.wait_open(2)
            with Crowd(service, 1) as third:
                assert third.streaming == 1
            assert status(service, "/readyz") == 503
            assert status(service, "/healthz") == 200
            assert (running.streaming, running.ended) == (2, 0)
            service.wait_log(AWAY)
            assert (service.log().count(AWAY), service.log().count(BACK)) == (1, 0)
        eventually(lambda: status(service, "/readyz") == 200, "it stays away")
        service.wait_log(BACK)
        assert (service.log().count(AWAY), service.log().count(BACK)) == (1, 1)
        assert (running.streaming, running.ended) == (2, 0)
        assert "Traceback" not in service.log()


def test_recovery_is_noticed_without_readiness_checks(redis_server: RedisServer, impatient: Path) -> None:
    settings = {"SSE_THROTTLE": "", "root": impatient}
    with Upstream(respond(EVENT)) as upstream, using(redis_server.url, upstream.url, **settings) as service:
        redis_server.stop()
        assert status(service, "/upstream/test/") == 200
        service.wait_log(AWAY)
        redis_server.start()

        def is_found() -> bool:
            return status(service, "/upstream/test/") == 200 and BACK in service.log()

        eventually(is_found, "it stays away")


def test_a_hanging_redis_delays_only_the_calls_of_that_moment(
    redis_server: RedisServer,
) -> None:
    """Flask-Limiter answered 500 to 99 of them: to all but the first whose question failed."""
    count = 100
    settings = {"SSE_THROTTLE": "1000 per hour", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with Upstream(respond(EVENT)) as upstream, using(redis_server.url, upstream.url, **settings) as service:
        assert status(service, "/upstream/test/") == 200
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            rounds = [ask_at_once(service, count) for _ in range(2)]
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        for seen in rounds:
            assert [found for found, _ in seen] == [200] * count
        first, second = (sorted(held for _, held in seen) for seen in rounds)
        print(f"{count} at once: held up {first[0]:.2f} to {first[-1]:.2f} s, the next {count} {second[-1]:.2f} s")
        # Each waited for the store by itself, but together: a queue would be as many seconds as there are.
        assert first[-1] < 10
        # At most one of them asks whether it is back.
        assert sum(held > 1 for held in second) < count / 4


def ask_at_once(service: Service, count: int) -> list[tuple[int, float]]:
    """Send so many calls, and return the status of each and the seconds until it was answered."""
    together, seen = threading.Barrier(count), []

    def ask() -> None:
        together.wait()
        began = time.monotonic()
        seen.append((status(service, "/upstream/test/"), time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def loading(connection: Connection) -> None:
    """A Redis that reads its file: every command gets the same response."""
    while True:
        count = int(connection.read_until(b"\r\n")[1:])
        for _ in range(count):
            size = int(connection.read_until(b"\r\n")[1:])
            connection.read(size + 2)
        connection.send(b"-LOADING Redis is loading the dataset in memory\r\n")


def test_a_store_that_is_still_loading_is_unavailable() -> None:
    with Upstream(loading) as store, Upstream(respond(EVENT)) as upstream:
        with using(f"redis://127.0.0.1:{store.port}/0", upstream.url, SSE_THROTTLE="2 per hour") as service:
            assert [status(service, "/upstream/test/") for _ in range(3)] == [200, 200, 429]
            assert status(service, "/readyz") == 503
            service.wait_log(AWAY)
            assert service.log().count(AWAY) == 1
