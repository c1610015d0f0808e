"""Commands of many callers at once go to the shared store together."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sse.relay.batch import Batches, Command
from sse.relay.lease import SharedLeases
from sse.relay.redis import SharedStore

from ..support.ending import eventually
from ..support.program import RedisServer
from ..support.redis_proxy import CountingProxy

COUNT = 10


class Store:
    """Replies with what it is sent, once it may."""

    def __init__(self) -> None:
        self.batches = Batches(self.send)
        self.sizes: list[int] = []
        self.may_reply = [threading.Event(), threading.Event()]
        #: Names of commands whose batch fails.
        self.failing = ""

    def send(self, commands: Sequence[Command]) -> Sequence[Any] | None:
        gate = self.may_reply[min(len(self.sizes), 1)]
        self.sizes.append(len(commands))
        assert gate.wait(10)
        if commands[0][0] in self.failing.split():
            raise ZeroDivisionError
        return [command[0] for command in commands]


Started = Callable[[Sequence[Sequence[Command]]], tuple[Store, list[Future[Any]]]]


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Started:
    """`started(calls)` gives a store that was sent the first call, while the others wait."""
    pool = ThreadPoolExecutor(2 * COUNT)
    request.addfinalizer(lambda: pool.shutdown(wait=False))

    def start(calls: Sequence[Sequence[Command]]) -> tuple[Store, list[Future[Any]]]:
        store = Store()
        batches = store.batches
        results = [pool.submit(batches.run, calls[0])]
        eventually(lambda: store.sizes == [len(calls[0])], "the first is not sent")
        results += [pool.submit(batches.run, commands) for commands in calls[1:]]
        eventually(lambda: len(batches._waiting) == len(calls) - 1, "the others do not wait")
        return store, results

    return start


def test_what_comes_meanwhile_follows_in_one_batch(started: Started) -> None:
    calls = [[[f"{number}.{index}"] for index in range(number % 3 + 1)] for number in range(COUNT)]
    store, results = started(calls)
    for gate in store.may_reply:
        gate.set()
    assert [result.result(10) for result in results] == [[command[0] for command in commands] for commands in calls]
    assert store.sizes == [1, sum(map(len, calls)) - 1]


def test_a_caller_does_not_wait_for_the_batch_of_others(started: Started) -> None:
    store, (first, second) = started([[["a"]], [["b"]]])
    store.may_reply[0].set()
    assert first.result(10) == ["a"]
    eventually(lambda: store.sizes == [1, 1], "the second is not sent")
    assert not second.done()
    store.may_reply[1].set()
    assert second.result(10) == ["b"]


def test_a_batch_that_fails_leaves_the_next_its_turn(started: Started) -> None:
    store, (first, second) = started([[["a"]], [["b"]]])
    store.failing = "a"
    store.may_reply[0].set()
    with pytest.raises(ZeroDivisionError):
        first.result(10)
    store.may_reply[1].set()
    assert second.result(10) == ["b"]


def test_a_batch_of_others_that_fails_leaves_the_next_its_turn(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent by no caller, and what had come meanwhile waited until another one called."""
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    store, (first, second) = started([[["a"]], [["b"]]])
    store.failing = "b"
    store.may_reply[0].set()
    assert first.result(10) == ["a"]
    eventually(lambda: store.sizes == [1, 1], "the second is not sent")
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(store.batches.run, [["c"]])
        eventually(lambda: len(store.batches._waiting) == 1, "the third does not wait")
        store.may_reply[1].set()
        assert second.result(10) is None
        assert third.result(10) == ["c"]
    eventually(lambda: [each.exc_type for each in raised] == [ZeroDivisionError], "the failure is not reported")


def test_leases_of_many_streams_take_two_round_trips(redis_server: RedisServer) -> None:
    with CountingProxy(redis_server.port) as proxy, ThreadPoolExecutor(COUNT) as pool:
        store = SharedStore(f"redis://127.0.0.1:{proxy.port}/0")
        leases = SharedLeases(store, total=0, per_client=COUNT + 1)
        give_back = [leases.take("a")]
        before = proxy.round_trips
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            taken = [pool.submit(leases.take, "a") for _ in range(COUNT)]
            eventually(lambda: len(store._batches._waiting) == COUNT - 1, "they are not gathered")
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        give_back += [result.result(10) for result in taken]
        assert proxy.round_trips - before == 2
        assert redis_server.client().zcard("sse-leases:a") == COUNT + 1
        list(pool.map(lambda function: function(), give_back))
        assert redis_server.client().zcard("sse-leases:a") == 0
        store.close()


def test_calls_of_a_cluster_do_not_wait_for_each_other() -> None:
    """redis-py sends the commands of a batch again, one after another, if a node does not reply in time."""
    store, together = SharedStore("redis+cluster://127.0.0.1:1"), threading.Barrier(2)

    class Client:
        def execute_command(self, *command: Any) -> int:
            return together.wait(10)

    store._client = Client()
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: store.run(["PING"]), range(2)))
    assert replies in ([[0], [1]], [[1], [0]])
