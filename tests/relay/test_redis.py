"""Whether the shared store is there, and who has to wait to find out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import RedisError

from sse.relay.redis import CONNECTIONS, TIMEOUT, SharedStore


def broken(client: Any) -> Any:
    """Fail as an unavailable store does."""
    raise RedisError("unavailable")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """A store that was found to be away, so long ago that it may be asked again."""
    store = SharedStore("redis://127.0.0.1:1/0")
    assert store.call(broken) is None
    store._retry_at = 1.0
    return store


def test_an_unavailable_store_is_not_called_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    store, asked, missed = SharedStore("redis://127.0.0.1:1/0"), [], []
    assert store.call(broken, on_unavailable=lambda: missed.append(1)) is None
    assert store.call(lambda _: asked.append(1), on_unavailable=lambda: missed.append(2)) is None
    assert (asked, missed) == ([], [1, 2])
    assert [record.message for record in caplog.records] == [
        "Redis unavailable (RedisError: not usable as a store); using per-process limits"
    ]


def test_it_has_recovered_with_the_first_response(away: SharedStore, caplog: pytest.LogCaptureFixture) -> None:
    assert [away.call(lambda _: 1) for _ in range(2)] == [1, 1]
    messages = [record.message for record in caplog.records if "recovered" in record.message]
    assert messages == ["Redis recovered; limits are shared again"]


def test_one_caller_alone_checks_whether_it_has_recovered(away: SharedStore) -> None:
    """All whose calls came while it hung waited for it: with five seconds in between, one in six."""
    asking, answering, answers = threading.Event(), threading.Event(), []

    def ask(client: Any) -> int:
        asking.set()
        assert answering.wait(10)
        return 1

    first = threading.Thread(target=lambda: answers.append(away.call(ask)))
    first.start()
    assert asking.wait(10)
    assert away.call(lambda _: pytest.fail("a second one asks")) is None
    answering.set()
    first.join()
    assert answers == [1]
    assert away.call(lambda _: 2) == 2


def test_what_fails_for_another_reason_is_no_absence() -> None:
    store = SharedStore("redis://127.0.0.1:1/0")
    with pytest.raises(ZeroDivisionError):
        store.call(lambda _: 1 / 0)
    assert store.call(lambda _: 1) == 1


#: So many callers that each connection serves four, and seconds of an operation: the last wait longer than for a reply.
BURST, SLOW = 4 * CONNECTIONS, TIMEOUT / 2.5


def burst(call: Callable[[Callable[[Any], Any]], Any]) -> list[Any]:
    """Return what many callers got that came at once, while the store worked slowly."""

    def operate(client: Any) -> int:
        time.sleep(SLOW)
        return 1

    with ThreadPoolExecutor(BURST) as callers:
        return list(callers.map(call, [operate] * BURST))


def test_a_burst_of_callers_is_served_and_not_refused() -> None:
    """Of a thousand clients at once, four hundred got no lease, because a connection was not free within a second."""
    assert burst(SharedStore("redis://127.0.0.1:1/0").call) == [1] * BURST


def test_those_who_wait_do_not_each_try_an_unavailable_store() -> None:
    store = SharedStore("redis://127.0.0.1:1/0")
    together, tried = threading.Barrier(2 * CONNECTIONS), []

    def hang(client: Any) -> Any:
        tried.append(1)
        time.sleep(SLOW)
        broken(client)

    def call(_: int) -> bool:
        together.wait()
        return store.call(hang) is None

    with ThreadPoolExecutor(2 * CONNECTIONS) as callers:
        assert all(callers.map(call, range(2 * CONNECTIONS)))
    assert len(tried) == CONNECTIONS
