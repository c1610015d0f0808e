"""A store of recordings of each kind, and the Redis that they share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sse.relay.log.memory import MemoryLog
from sse.relay.log.store import Keys

from ...support.log import Clock, Store, opened_logs, redis_log
from ...support.program import RedisServer, program


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that the tests of this directory share; each of their keys is one of a random id."""
    server = RedisServer(program("redis-server", "redis-server"), tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(autouse=True)
def closed_logs() -> Iterator[None]:
    """Close what a test has opened."""
    yield
    while opened_logs:
        opened_logs.pop().close()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        clock = Clock()
        log = MemoryLog(max_bytes=1 << 20, memory=1 << 26, clock=clock)

        def expire(_: str) -> None:
            clock.now += 61

        return Store(log, log, expire)
    url = request.getfixturevalue("redis_url")

    def expire_now(id: str) -> None:
        with redis.Redis.from_url(url) as client:
            client.delete(Keys.of(id).data)

    return Store(redis_log(url), redis_log(url), expire_now)
