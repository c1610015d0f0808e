"""Quotas: charged once, per window, in memory and in a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import redis
from limits import parse
from redis.crc import key_slot

from sse.protocol.usage import Usage
from sse.relay.redis import SharedStore
from sse.web.access.quota import Quotas, tokens_of

from ...support.program import RedisServer

QUOTA = parse("100 per 1 day")
Make = Callable[[], Quotas]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Return what makes the quotas of a process; in memory there is one process."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return lambda: Quotas(SharedStore(server.url))
    quotas = Quotas()
    return lambda: quotas


def test_what_is_spent_is_refused_until_the_window_ends(make: Make) -> None:
    one, other = make(), make()
    assert one.retry_after("ann", QUOTA) is None
    one.charge("ann", QUOTA, 99)
    assert other.retry_after("ann", QUOTA) is None
    other.charge("ann", QUOTA, 1)
    wait = one.retry_after("ann", QUOTA)
    assert wait is not None
    assert 1 <= wait <= 86_400
    # Until the window ends, which begins at midnight.
    assert abs(wait + time.time() % 86_400 - 86_400) <= 2
    assert one.retry_after("bob", QUOTA) is None


def test_charges_of_many_at_once_are_all_counted(make: Make) -> None:
    quotas = [make(), make()]
    threads = [threading.Thread(target=quotas[n % 2].charge, args=("ann", QUOTA, 2)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert quotas[0].retry_after("ann", parse("101 per 1 day")) is None
    assert quotas[1].retry_after("ann", QUOTA) is not None


def test_a_new_window_begins_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quotas = Quotas()
    quotas.charge("ann", QUOTA, 100)
    now = time.monotonic()
    wait = quotas.retry_after("ann", QUOTA)
    assert wait is not None
    monkeypatch.setattr(time, "monotonic", lambda: now + wait + 1)
    assert quotas.retry_after("ann", QUOTA) is None


def test_a_clock_that_is_set_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    quotas = Quotas()
    quotas.charge("ann", QUOTA, 100)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert quotas.retry_after("ann", QUOTA) is not None


def test_a_charge_that_comes_again_counts_once(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py repeats a command whose connection was cut, though it may have been executed."""
    store = SharedStore(redis_server.url)
    quotas = Quotas(store)
    call = store.call
    monkeypatch.setattr(store, "call", lambda run, **options: (call(run, **options), call(run, **options))[1])
    quotas.charge("ann", QUOTA, 60)
    monkeypatch.undo()
    assert quotas.retry_after("ann", QUOTA) is None


def test_every_key_expires(redis_server: RedisServer) -> None:
    quotas = Quotas(SharedStore(redis_server.url))
    assert quotas.retry_after("ann", QUOTA) is None
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.keys() == []
        quotas.charge("ann", QUOTA, 1)
        keys = client.keys()
        assert len(keys) == 2
        assert all(client.ttl(key) > 0 for key in keys)
    # Of one script, which a Cluster runs on one node.
    assert len({key_slot(key) for key in keys}) == 1


def test_what_was_spent_in_another_window_is_over(redis_server: RedisServer) -> None:
    """The key may be left for as long as a window is: it expires a window after the last charge."""
    quotas = Quotas(SharedStore(redis_server.url))
    quotas.charge("ann", QUOTA, 100)
    with redis.Redis.from_url(redis_server.url) as client:
        [account] = [key for key in client.keys() if client.type(key) == b"hash"]
        client.hset(account, "window", int(client.hget(account, "window") or 0) - 1)
        assert quotas.retry_after("ann", QUOTA) is None
        quotas.charge("ann", QUOTA, 7)
        assert client.hget(account, "spent") == b"7"


def test_nothing_is_charged_without_a_round_trip(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore(redis_server.url)
    monkeypatch.setattr(store, "call", lambda run, **options: pytest.fail("the store was called"))
    Quotas(store).charge("ann", QUOTA, 0)


def test_a_store_that_is_away_is_stood_in_for(redis_server: RedisServer) -> None:
    missed: list[None] = []
    quotas = Quotas(SharedStore(redis_server.url), on_unavailable=lambda: missed.append(None))
    redis_server.stop()
    quotas.charge("ann", QUOTA, 100)
    assert quotas.retry_after("ann", QUOTA) is not None
    assert len(missed) == 2


FULL = Usage(input=20, output=9)


@pytest.mark.parametrize(
    ("usage", "is_complete", "is_post", "events", "expected"),
    [
        pytest.param(FULL, True, True, 50, (29, False), id="reported"),
        pytest.param(FULL, False, True, 50, (150, True), id="reported-in-part"),
        pytest.param(Usage(input=900, output=1), False, True, 50, (901, True), id="a-part-above-the-estimate"),
        pytest.param(None, True, True, 50, (150, True), id="nothing-reported"),
        pytest.param(None, False, True, 0, (0, False), id="no-events"),
        pytest.param(None, True, False, 50, (0, False), id="get"),
    ],
)
def test_what_is_charged(
    usage: Usage | None, is_complete: bool, is_post: bool, events: int, expected: tuple[int, bool]
) -> None:
    found = tokens_of(usage, is_complete=is_complete, is_post=is_post, events=events, body=400)
    assert found == expected
