"""Whether the shared store is there, and who has to wait to find out."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from redis import RedisError

from sse.relay.redis import SharedStore


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
