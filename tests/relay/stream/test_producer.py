"""A producer takes items only as they are wanted, notices silence, and releases the iterable on every ending."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from sse.relay.stream.producer import IterableFailed, Producer, ThreadProducer

from ...support.source import pieces

PATIENCE = 10.0

KINDS = [pytest.param(Producer, id="inline"), pytest.param(ThreadProducer, id="thread")]
Kind = type[Producer]


class Items:
    """An iterable that can be watched: how many items were taken, by which thread, and whether it was closed."""

    def __init__(self, *items: str, then: Callable[[], Any] = lambda: None) -> None:
        self.taken = 0
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None
        self._items = items
        self._then = then

    def __iter__(self) -> Iterator[str]:
        self.thread = threading.current_thread()
        for item in self._items:
            self.taken += 1
            yield item
        self._then()

    def close(self) -> None:
        self.closed.set()


def produce(
    items: Any, kind: Kind = Producer, on_start: Callable[[Producer], None] = lambda producer: None
) -> Producer:
    return kind(items, str.encode, on_start=on_start)


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("kind", KINDS)
def test_all_items_are_encoded_and_the_iterable_is_closed(kind: Kind) -> None:
    items = Items("a", "b")
    assert list(pieces(produce(items, kind))) == [b"a", b"b"]
    assert items.closed.wait(PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_no_item_is_taken_before_the_one_before_it_was_passed_on(kind: Kind) -> None:
    items = Items(*"abcd")
    chunks = pieces(produce(items, kind))
    assert [(next(chunks), items.taken) for _ in range(3)] == [(b"a", 1), (b"b", 2), (b"c", 3)]


def test_without_heartbeat_the_iterable_runs_in_the_reader() -> None:
    items = Items("a")
    list(pieces(produce(items)))
    assert items.thread is threading.current_thread()


def test_a_wait_ends_with_its_time_and_no_item_is_lost() -> None:
    gate = threading.Event()
    producer = produce(Items("a", then=lambda: gate.wait(PATIENCE)), ThreadProducer)
    assert next(pieces(producer)) == b"a"
    for _ in range(2):
        assert producer.read() is None
        producer.wait(0.01)
    gate.set()
    assert list(pieces(producer)) == []


def test_what_cannot_be_subscribed_to_has_to_be_waited_for() -> None:
    assert produce(Items("a")).subscribe(lambda: None) is None


def test_a_subscriber_is_woken_for_each_item_and_for_the_end() -> None:
    """Also for what was there before it subscribed."""
    producer, woken, got = produce(Items("a", "b"), ThreadProducer), Event(), list[bytes]()

    def read_all() -> None:
        while piece := producer.read():
            got.append(piece)
        got.extend([] if piece is None else [piece])

    read_all()
    unsubscribe = producer.subscribe(woken.set)
    assert unsubscribe is not None
    while b"" not in got:
        assert woken.wait(PATIENCE)
        woken.clear()
        read_all()
    assert got == [b"a", b"b", b""]
    unsubscribe()


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_iterable_raises_is_raised(kind: Kind) -> None:
    items = Items("a", then=failing(LookupError("of the iterable")))
    chunks = pieces(produce(items, kind))
    assert next(chunks) == b"a"
    with pytest.raises(LookupError, match="of the iterable"):
        next(chunks)
    assert items.closed.wait(PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_an_oserror_of_the_iterable_is_not_the_clients(kind: Kind) -> None:
    chunks = pieces(produce(Items(then=failing(BrokenPipeError())), kind))
    with pytest.raises(IterableFailed) as found:
        next(chunks)
    assert isinstance(found.value.__cause__, BrokenPipeError)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_between_two_items_closes_the_iterable(kind: Kind) -> None:
    items = Items("a", "b")
    producer = produce(items, kind)
    assert next(pieces(producer)) == b"a"
    producer.close()
    assert items.closed.wait(PATIENCE)
    assert items.taken == 1


def test_closing_before_the_first_item_closes_the_iterable() -> None:
    items = Items("a")
    produce(items).close()
    assert items.closed.is_set()
    assert items.taken == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_cancelled_at_its_start_takes_no_item(kind: Kind) -> None:
    items = Items("a")
    producer = produce(items, kind, Producer.cancel)
    assert list(pieces(producer)) == []
    producer.close()
    assert items.closed.wait(PATIENCE)
    assert items.taken == 0


def test_cancelling_ends_the_wait_for_a_silent_thread_at_once() -> None:
    gate, waits = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        gate.wait(PATIENCE)

    def cut() -> None:
        waits.wait(PATIENCE)
        producer.cancel()

    items = Items("a", then=wait)
    producer = produce(items, ThreadProducer)
    chunks = pieces(producer)
    assert next(chunks) == b"a"
    cutter = threading.Thread(target=cut)
    cutter.start()
    begin = time.monotonic()
    assert list(chunks) == []
    assert time.monotonic() - begin < PATIENCE / 2
    assert not items.closed.is_set()
    gate.set()
    assert items.closed.wait(PATIENCE)
    cutter.join()


def test_cancelling_interrupts_a_greenlet_and_runs_its_finally() -> None:
    seen: list[str] = []

    def items() -> Iterator[str]:
        try:
            yield "a"
            gevent.sleep(PATIENCE)
        finally:
            seen.append("finally")

    producer = produce(items())
    reader = gevent.spawn(lambda: list(pieces(producer)))
    gevent.sleep(0)
    assert not reader.ready()
    producer.cancel()
    begin = time.monotonic()
    assert reader.get(timeout=PATIENCE) == [b"a"]
    assert time.monotonic() - begin < PATIENCE / 2
    assert seen == ["finally"]


def test_a_greenlet_outside_the_iterable_is_not_interrupted() -> None:
    producer = produce(Items("a", "b"))
    passed: list[bytes] = []

    def read() -> str:
        for chunk in pieces(producer):
            passed.append(chunk)
            gevent.sleep(0.01)  # the write to the client
        return "ended by itself"

    reader = gevent.spawn(read)
    gevent.sleep(0)
    producer.cancel()
    assert reader.get(timeout=PATIENCE) == "ended by itself"
    assert passed == [b"a"]


def test_the_context_of_the_reader_is_that_of_the_iterable() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def items() -> Iterator[str]:
        yield variable.get()

    variable.set("of the reader")
    assert list(pieces(produce(items(), ThreadProducer))) == [b"of the reader"]
