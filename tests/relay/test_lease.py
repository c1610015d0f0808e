"""How many streams may be open."""

from __future__ import annotations

import threading

import pytest

from sse.errors import AtCapacity, TooManyStreams
from sse.relay.lease import Leases


def test_a_process_has_no_more_than_it_may() -> None:
    leases = Leases(total=2, per_client=0)
    leases.take("a")
    leases.take("b")
    with pytest.raises(AtCapacity) as refused:
        leases.take("c")
    assert refused.value.retry_after
    assert len(leases) == 2


def test_a_client_has_no_more_than_it_may_and_others_have_theirs() -> None:
    leases = Leases(total=0, per_client=2)
    leases.take("a")
    leases.take("a")
    with pytest.raises(TooManyStreams):
        leases.take("a")
    leases.take("b")


def test_zero_is_no_limit() -> None:
    leases = Leases(total=0, per_client=0)
    for _ in range(1000):
        leases.take("a")
    assert len(leases) == 1000


def test_what_is_given_back_can_be_taken_again() -> None:
    leases = Leases(total=1, per_client=1)
    for _ in range(3):
        give_back = leases.take("a")
        with pytest.raises(AtCapacity):
            leases.take("a")
        give_back()
    assert len(leases) == 0


def test_giving_back_twice_gives_back_once() -> None:
    leases = Leases(total=2, per_client=0)
    give_back = leases.take("a")
    leases.take("a")
    give_back()
    give_back()
    assert len(leases) == 1


def test_a_refusal_takes_nothing() -> None:
    leases = Leases(total=0, per_client=1)
    give_back = leases.take("a")
    for _ in range(5):
        with pytest.raises(TooManyStreams):
            leases.take("a")
    give_back()
    assert len(leases) == 0


def test_a_client_that_is_gone_leaves_no_trace() -> None:
    leases = Leases(total=0, per_client=1)
    for number in range(100):
        leases.take(f"client {number}")()
    assert not leases._open


def test_many_threads_never_take_more_than_there_are() -> None:
    leases = Leases(total=10, per_client=0)
    most: list[int] = []

    def work() -> None:
        for _ in range(300):
            try:
                give_back = leases.take("a")
            except AtCapacity:
                continue
            most.append(len(leases))
            give_back()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 10
    assert len(leases) == 0


def test_a_client_that_comes_back_at_once_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection was closed, and the stream that this ends had not released its lease yet."""
    leases = Leases(total=0, per_client=1)
    give_back = leases.take("a")
    monkeypatch.setattr("sse.relay.lease.time.sleep", lambda _: give_back())
    leases.take("a")
    assert len(leases) == 1
