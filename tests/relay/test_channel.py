"""What channels promise: order, no doubles, nothing missing without a word; on one process's own log."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import gevent
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sse import ServerSentEvent
from sse.relay.channel import hub as module
from sse.relay.channel.history import HistoryLimits, check_channel, parse_event_id
from sse.relay.channel.hub import Channels
from sse.relay.channel.reader import READ_SIZE, ChannelReader, Overtaken

NAMES = ["a", "b", "c"]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=lambda seconds: None))
    return clock


def publish(hub: Channels, channel: str, data: str = "x") -> str:
    return hub.publish(channel, ServerSentEvent(data=data))


def subscribe(hub: Channels, *names: str, since: str = "", replay: int = 0) -> ChannelReader:
    reader = hub.subscribe(names, since=since, replay=replay)
    assert reader is not None
    return reader


def drain(reader: ChannelReader) -> bytes:
    """Return all that there is now."""
    pieces = []
    while piece := reader.read():
        pieces.append(piece)
    return b"".join(pieces)


def ids(data: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^id: \w+-(\d+)$", data, re.MULTILINE)]


def data_of(reader: ChannelReader) -> list[str]:
    return [text.decode() for text in re.findall(rb"^data: (.*)$", drain(reader), re.MULTILINE)]


def test_a_new_reader_gets_what_is_published_from_now_on() -> None:
    hub = Channels(HistoryLimits())
    publish(hub, "a", "before")
    reader = subscribe(hub, "a")
    assert drain(reader) == f"id: {hub.numbering.epoch}-1\n\n".encode()
    last = publish(hub, "a", "after")
    assert drain(reader) == f"id: {last}\ndata: after\n\n".encode()
    assert reader.read() is None


def test_a_reader_without_an_event_yet_can_resume() -> None:
    hub = Channels(HistoryLimits())
    reader = subscribe(hub, "a")
    (number,) = ids(drain(reader))
    reader.close()
    publish(hub, "a", "meanwhile")
    assert data_of(subscribe(hub, "a", since=hub.numbering.event_id(number))) == ["meanwhile"]


def test_one_id_covers_several_channels_in_order() -> None:
    hub = Channels(HistoryLimits())
    first = publish(hub, "a", "1")
    publish(hub, "b", "2")
    publish(hub, "c", "not read")
    publish(hub, "a", "3")
    assert data_of(subscribe(hub, "a", "b", since=first)) == ["2", "3"]


def test_past_events_come_where_they_are_asked_for() -> None:
    hub = Channels(HistoryLimits())
    for number in range(5):
        publish(hub, "ab"[number % 2], str(number))
    assert data_of(subscribe(hub, "a", "b", replay=3)) == ["2", "3", "4"]
    assert data_of(subscribe(hub, "a", "b", replay=99)) == ["0", "1", "2", "3", "4"]


def test_what_a_reader_is_behind_is_one_piece() -> None:
    hub = Channels(HistoryLimits())
    reader = subscribe(hub, "a")
    reader.read()
    for number in range(10):
        publish(hub, "a", str(number))
    piece = reader.read()
    assert piece is not None
    assert piece.count(b"data: ") == 10
    assert reader.read() is None


def test_a_piece_is_bounded() -> None:
    hub = Channels(HistoryLimits(events=100, bytes=10_000_000))
    reader = subscribe(hub, "a")
    reader.read()
    for _ in range(10):
        publish(hub, "a", "x" * 20_000)
    pieces = []
    while piece := reader.read():
        pieces.append(piece)
    assert max(map(len, pieces)) <= READ_SIZE
    assert ids(b"".join(pieces)) == list(range(1, 11))


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(HistoryLimits(events=3), id="events"),
        pytest.param(HistoryLimits(bytes=60), id="bytes"),
    ],
)
def test_a_history_that_is_too_short_is_reset(limits: HistoryLimits) -> None:
    hub = Channels(limits)
    first = publish(hub, "a")
    for _ in range(9):
        last = publish(hub, "a")
    head = drain(subscribe(hub, "a", since=first))
    assert head == ServerSentEvent(id=last, event="reset", data='{"channels":["a"]}').encode()


def test_age_ends_a_history(clock: Clock) -> None:
    hub = Channels(HistoryLimits(seconds=10))
    first = publish(hub, "a")
    publish(hub, "a")
    clock.now += 11
    assert b"event: reset" in drain(subscribe(hub, "a", since=first))


def test_a_quiet_channel_is_whole_however_busy_others_are(clock: Clock) -> None:
    hub = Channels(HistoryLimits(seconds=10))
    mark = hub.numbering.event_id(0)
    for _ in range(5):
        publish(hub, "busy")
        clock.now += 1
    assert b"reset" not in drain(subscribe(hub, "quiet", since=mark))


def test_a_forgotten_channel_differs_from_an_unused_one(clock: Clock) -> None:
    """A channel without readers is dropped with its history; who had missed its last event then is to learn so."""
    hub = Channels(HistoryLimits(seconds=10))
    mark = publish(hub, "b")
    publish(hub, "a", "missed")
    clock.now += 30
    publish(hub, "b")
    assert hub.info("a").events == 0
    assert b"event: reset" in drain(subscribe(hub, "a", since=mark))


@pytest.mark.parametrize("since", ["other1-1", "{epoch}-7"], ids=["another-epoch", "of-the-future"])
def test_an_id_that_cannot_be_resumed_resets(since: str) -> None:
    hub = Channels(HistoryLimits())
    publish(hub, "a")
    assert b"event: reset" in drain(subscribe(hub, "a", since=since.format(epoch=hub.numbering.epoch)))


@pytest.mark.parametrize(
    "text", ["", "1", "a-1", "abcd-", "abcd-01", "abcd--1", "abcd-1x", "ABCD-1", "abcd-1\n", "x" * 99]
)
def test_an_id_that_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_event_id(text)


@pytest.mark.parametrize("name", ["", "a b", "a*", "é", "a\n", "x" * 201, "a?b", "{a}"])
def test_what_is_no_channel_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_channel(name)


def test_a_reader_that_the_history_overtakes_ends_visibly() -> None:
    hub = Channels(HistoryLimits(events=3))
    reader = subscribe(hub, "a")
    drain(reader)
    for _ in range(4):
        publish(hub, "a")
    with pytest.raises(Overtaken):
        reader.read()


def test_a_closed_channel_gives_the_rest_and_ends() -> None:
    hub = Channels(HistoryLimits())
    reader, other = subscribe(hub, "a"), subscribe(hub, "a", "b")
    drain(other)
    last = publish(hub, "a", "rest")
    end = hub.close_channel("a")
    assert drain(reader).endswith(f"data: rest\n\nid: {end}\n\n".encode())
    assert reader.read() == b""
    assert data_of(other) == ["rest"]
    assert other.read() is None
    assert hub.subscribe(["a"], since=last) is None
    assert hub.subscribe(["a"], since=end) is None
    assert hub.subscribe(["a"]) is None
    assert data_of(subscribe(hub, "a", since=hub.numbering.event_id(0))) == ["rest"]


def test_a_channel_that_is_published_to_again_is_open_again() -> None:
    hub = Channels(HistoryLimits())
    other = subscribe(hub, "a", "b")
    last = publish(hub, "a", "rest")
    end = hub.close_channel("a")
    publish(hub, "a", "again")
    reader = subscribe(hub, "a", since=last)
    assert ids(drain(reader)) == [1, 2]
    assert reader.read() == b""
    assert data_of(subscribe(hub, "a", since=end)) == ["again"]
    assert data_of(other) == ["rest", "again"]
    hub.close_channel("b")
    assert other.read() is not None
    assert other.read() is None


def test_readers_are_counted_and_leave() -> None:
    hub = Channels(HistoryLimits())
    readers = [subscribe(hub, "a", "b") for _ in range(3)]
    assert (hub.info("a").readers, hub.info("b").readers) == (3, 3)
    for reader in readers:
        reader.close()
        reader.close()
    assert (hub.info("a").readers, hub.info("b").readers) == (0, 0)
    last = publish(hub, "a")
    assert (hub.info("a").last_id, hub.info("a").events) == (last, 1)


def test_channels_without_history_and_readers_are_forgotten(clock: Clock) -> None:
    hub = Channels(HistoryLimits(seconds=10))
    kept = subscribe(hub, "kept")
    for number in range(1000):
        publish(hub, f"user.{number}")
    clock.now += 11
    publish(hub, "a")
    assert set(hub._channels) == {"kept", "a"}
    kept.close()


def test_a_bell_wakes_a_thread_that_waits() -> None:
    hub = Channels(HistoryLimits())
    reader = subscribe(hub, "a")
    drain(reader)
    seen: list[bytes | None] = []

    def read() -> None:
        reader.wait(None)
        seen.append(reader.read())

    thread = threading.Thread(target=read)
    thread.start()
    publish(hub, "a", "ring")
    thread.join(10)
    assert seen == [f"id: {hub.numbering.epoch}-1\ndata: ring\n\n".encode()]


def test_a_reader_that_is_cancelled_wakes_and_ends() -> None:
    reader = subscribe(Channels(HistoryLimits()), "a")
    drain(reader)
    threading.Timer(0.01, reader.cancel).start()
    reader.wait(10)
    assert reader.read() == b""


def test_readers_are_woken_in_the_event_loop_from_any_thread() -> None:
    hub = Channels(HistoryLimits())
    woken: list[int] = []
    main = threading.get_ident()
    for _ in range(100):
        reader = subscribe(hub, "a")
        drain(reader)
        reader.subscribe(lambda: woken.append(threading.get_ident()))
    thread = threading.Thread(target=publish, args=(hub, "a"))
    thread.start()
    thread.join()
    with gevent.Timeout(10):
        while len(woken) < 100:
            gevent.sleep(0.001)
    assert set(woken) == {main}


def test_a_reader_with_something_to_read_is_woken_at_once() -> None:
    hub = Channels(HistoryLimits())
    reader = subscribe(hub, "a")
    woken: list[None] = []
    reader.subscribe(lambda: woken.append(None))
    assert woken == []
    gevent.sleep(0)
    assert woken == [None]


@dataclass
class Seen:
    """What one reader has had."""

    reader: ChannelReader
    names: tuple[str, ...]
    #: Its last event ID; None before the first block.
    last: str | None = None


class ChannelMachine(RuleBasedStateMachine):
    """What readers saw, with what `reset` said, is what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "time", SimpleNamespace(monotonic=self.clock.monotonic, sleep=lambda seconds: None))
        self.published: list[tuple[int, str]] = []
        self.readers: list[Seen] = []
        self.has_aged = False

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(events=st.sampled_from([3, 1000]))
    def begin(self, events: int) -> None:
        self.limits = HistoryLimits(events=events, seconds=100.0)
        self.hub = Channels(self.limits)

    @rule(name=st.sampled_from(NAMES))
    def publish(self, name: str) -> None:
        _, seq = parse_event_id(publish(self.hub, name, name))
        assert seq == (self.published[-1][0] if self.published else 0) + 1
        self.published.append((seq, name))

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    def subscribe(self, names: list[str]) -> None:
        self.readers.append(Seen(subscribe(self.hub, *names), tuple(names)))

    @rule(number=st.integers(0, 99))
    def read(self, number: int) -> None:
        if self.readers:
            self._read(self.readers[number % len(self.readers)])

    @rule(number=st.integers(0, 99))
    def come_back(self, number: int) -> None:
        if not self.readers:
            return
        seen = self.readers[number % len(self.readers)]
        seen.reader.close()
        seen.reader = subscribe(self.hub, *seen.names, since=seen.last or "")
        self._read(seen)

    @rule(seconds=st.sampled_from([1.0, 60.0, 150.0]))
    def age(self, seconds: float) -> None:
        self.clock.now += seconds
        self.has_aged = True

    def _read(self, seen: Seen) -> None:
        try:
            data = drain(seen.reader)
        except Overtaken:
            assert self.has_aged or self.limits.events < 1000
            seen.reader.close()
            seen.reader = subscribe(self.hub, *seen.names, since=seen.last or "")
            data = drain(seen.reader)
        for block in data.split(b"\n\n")[:-1]:
            self._check(seen, block)

    def _check(self, seen: Seen, block: bytes) -> None:
        (number,) = ids(block)
        if b"event: reset" in block:
            assert self.has_aged or self.limits.events < 1000
        elif b"data: " in block:
            assert seen.last is not None
            last = parse_event_id(seen.last)[1]
            due = [pair for pair in self.published if pair[0] > last and pair[1] in seen.names]
            assert due[0][0] == number
            assert due[0][1].encode() in block
        elif seen.last is not None:
            assert number == parse_event_id(seen.last)[1]
        seen.last = self.hub.numbering.event_id(number)

    @invariant()
    def readers_that_have_read_all_have_had_all(self) -> None:
        for seen in self.readers:
            if seen.last is None:
                continue
            last = parse_event_id(seen.last)[1]
            assert last <= self.hub.numbering.seq


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
