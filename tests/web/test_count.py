"""Where calls are counted when the clock is set back, and when the store is away."""

from __future__ import annotations

import time
from typing import Any

import pytest
from limits import RateLimitItemPerSecond
from limits.strategies import MovingWindowRateLimiter

from sse.relay.store import SharedStore
from sse.web.count import Memory, SharedCounts

HOUR = 3600

#: Three calls in ten seconds.
ITEM = RateLimitItemPerSecond(3, 10)


@pytest.fixture(params=["memory", "shared"])
def counts(request: pytest.FixtureRequest) -> Memory:
    if request.param == "memory":
        return Memory()
    store = SharedStore(request.getfixturevalue("redis_server").url)
    request.addfinalizer(store.client.close)
    return SharedCounts(store=store, on_absence=lambda: pytest.fail("the store is away"))


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`jump(seconds)` sets the wall clock."""
    now, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + offset[0])
    return lambda seconds: offset.__setitem__(0, offset[0] + seconds)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_set_back_by_hours_it_locks_nobody_out(calls: int, counts: Memory, jump: Any) -> None:
    """limits compares times of the wall clock, so all calls from before were within every window to come."""
    limiter = MovingWindowRateLimiter(counts)
    for _ in range(calls):
        assert limiter.hit(ITEM, "client")
    jump(-HOUR)
    assert limiter.test(ITEM, "client")
    for _ in range(10):
        if not limiter.hit(ITEM, "client"):
            break
    # What is said now is of this window, or the next.
    assert limiter.get_window_stats(ITEM, "client").reset_time - time.time() <= 2 * 10
    jump(21)
    assert [limiter.hit(ITEM, "client") for _ in range(4)] == [True, True, True, False]


def test_set_back_a_little_it_still_counts(counts: Memory, jump: Any) -> None:
    limiter = MovingWindowRateLimiter(counts)
    for _ in range(3):
        assert limiter.hit(ITEM, "client")
    jump(-5)
    assert not limiter.hit(ITEM, "client")
    assert not limiter.test(ITEM, "client")
    jump(16)
    assert limiter.hit(ITEM, "client")


def test_set_forward_it_forgets(counts: Memory, jump: Any) -> None:
    limiter = MovingWindowRateLimiter(counts)
    for _ in range(3):
        assert limiter.hit(ITEM, "client")
    jump(HOUR)
    assert [limiter.hit(ITEM, "client") for _ in range(4)] == [True, True, True, False]


def test_without_the_store_memory_counts() -> None:
    absences: list[None] = []
    counts = SharedCounts(store=SharedStore("redis://127.0.0.1:1/0"), on_absence=lambda: absences.append(None))
    limiter = MovingWindowRateLimiter(counts)
    assert [limiter.hit(ITEM, "client") for _ in range(4)] == [True, True, True, False]
    assert len(absences) == 4
    assert not counts.check()
