"""Where calls are counted when the clock is set back, and when the store is away."""

from __future__ import annotations

import threading
import time

import pytest
from limits import RateLimitItemPerSecond
from limits.strategies import MovingWindowRateLimiter

from sse.relay.redis import SharedStore
from sse.web.access.limit_storage import Memory, SharedCounts

HOUR = 3600

#: Three calls in ten seconds.
ITEM = RateLimitItemPerSecond(3, 10)


@pytest.fixture(params=["memory", "shared"])
def counts(request: pytest.FixtureRequest) -> Memory:
    if request.param == "memory":
        return Memory()
    store = SharedStore(request.getfixturevalue("redis_server").url)
    request.addfinalizer(store.close)
    return SharedCounts(store=store, on_unavailable=lambda: pytest.fail("the store is unavailable"))


class Clocks:
    """The clocks of this process; the store's own is not asked for this."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wall = self._monotonic = 0.0
        wall, monotonic = time.time, time.monotonic
        monkeypatch.setattr(time, "time", lambda: wall() + self._wall)
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + self._monotonic)

    def jump(self, seconds: float) -> None:
        """Set the clock that shows the time of day."""
        self._wall += seconds

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._wall += seconds
        self._monotonic += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_clock_that_jumps_locks_no_client_out(calls: int, jump: float, counts: Memory, clocks: Clocks) -> None:
    """limits compares times of the wall clock, so all calls from before were within every window to come."""
    limiter = MovingWindowRateLimiter(counts)
    for _ in range(calls):
        assert limiter.hit(ITEM, "client")
    clocks.jump(jump)
    for _ in range(10):
        if not limiter.hit(ITEM, "client"):
            break
    # What is said now is of this window, or the next.
    assert limiter.get_window_stats(ITEM, "client").reset_time - time.time() <= 2 * 10
    clocks.wait(21)
    assert [limiter.hit(ITEM, "client") for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_is_set_back_a_little_still_counts(counts: Memory, clocks: Clocks) -> None:
    limiter = MovingWindowRateLimiter(counts)
    for _ in range(3):
        assert limiter.hit(ITEM, "client")
    clocks.jump(-5)
    assert not limiter.hit(ITEM, "client")
    assert not limiter.test(ITEM, "client")
    clocks.wait(16)
    assert limiter.hit(ITEM, "client")


def test_a_window_moves(counts: Memory, clocks: Clocks) -> None:
    limiter = MovingWindowRateLimiter(counts)
    shown = []
    for _ in range(6):
        shown.append((limiter.hit(ITEM, "client"), limiter.get_window_stats(ITEM, "client").remaining))
        clocks.wait(4)
    # Calls at 0, 4, 8; at 12 the first is over, at 16 the second.
    assert shown == [(True, 2), (True, 1), (True, 0), (True, 0), (True, 0), (True, 0)]


def test_memory_starts_no_thread() -> None:
    """limits' own starts one every 10 ms, which copies all counts."""
    before = threading.active_count()
    limiter = MovingWindowRateLimiter(Memory())
    assert limiter.hit(ITEM, "client")
    assert threading.active_count() == before


def test_without_the_store_memory_counts() -> None:
    absences: list[None] = []
    counts = SharedCounts(store=SharedStore("redis://127.0.0.1:1/0"), on_unavailable=lambda: absences.append(None))
    limiter = MovingWindowRateLimiter(counts)
    assert [limiter.hit(ITEM, "client") for _ in range(4)] == [True, True, True, False]
    assert len(absences) == 4
    assert not counts.check()
