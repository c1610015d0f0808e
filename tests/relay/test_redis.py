"""Whether the shared store is there, and who has to wait to find out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sse.relay.redis import SharedStore


def broken(store: SharedStore) -> Any:
    """Fail as a store that is away does."""
    raise store.storage.base_exceptions("away")  # type: ignore[operator]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """A store that was found to be away, so long ago that it may be asked again."""
    store = SharedStore("redis://127.0.0.1:1/0")
    assert store.ask(lambda: broken(store)) is None
    store._absent_until = 1.0
    return store


def test_a_store_that_is_away_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    store, asked, missed = SharedStore("redis://127.0.0.1:1/0"), [], []
    assert store.ask(lambda: broken(store), on_absence=lambda: missed.append(1)) is None
    assert store.ask(lambda: asked.append(1), on_absence=lambda: missed.append(2)) is None
    assert (asked, missed) == ([], [1, 2])
    assert [record.message for record in caplog.records] == [
        "the store is away (RedisError): each process counts for itself"
    ]


def test_it_is_back_with_the_first_answer(away: SharedStore, caplog: pytest.LogCaptureFixture) -> None:
    assert [away.ask(lambda: 1) for _ in range(2)] == [1, 1]
    messages = [record.message for record in caplog.records if "back" in record.message]
    assert messages == ["the store is back: processes count together"]


def test_one_alone_asks_whether_it_is_back(away: SharedStore) -> None:
    """All whose calls came while it hung waited for it: with five seconds in between, one in six."""
    asking, answering, answers = threading.Event(), threading.Event(), []

    def ask() -> int:
        asking.set()
        assert answering.wait(10)
        return 1

    first = threading.Thread(target=lambda: answers.append(away.ask(ask)))
    first.start()
    assert asking.wait(10)
    assert away.ask(lambda: pytest.fail("a second one asks")) is None
    answering.set()
    first.join()
    assert answers == [1]
    assert away.ask(lambda: 2) == 2


def test_what_fails_for_another_reason_is_no_absence() -> None:
    store = SharedStore("redis://127.0.0.1:1/0")
    with pytest.raises(ZeroDivisionError):
        store.ask(lambda: 1 / 0)
    assert store.ask(lambda: 1) == 1
