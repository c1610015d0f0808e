"""The memory log: its budget, and that what has expired leaves nothing."""

from __future__ import annotations

import pytest

from sse.errors import StreamNotFound
from sse.relay.log import memory
from sse.relay.log.base import TOMBSTONE, Claim, Expired
from sse.relay.log.log import EXPECTED_SIZE
from sse.relay.log.memory import MemoryLog
from sse.relay.log.ring import Recording
from sse.relay.stream.end import EndReason

from ...support.ending import eventually
from ...support.log import Clock, header

SIZE = 100_000
BUDGET = 8 * EXPECTED_SIZE


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    return MemoryLog(max_bytes=4 << 20, memory=BUDGET, clock=clock)


def record(log: MemoryLog, id: str, size: int = SIZE, **options: object) -> Recording | None:
    """Record so many bytes; leave it open."""
    recording = log.create(id, header(**options), lambda reason: None)
    if recording is not None:
        recording.append(bytes(size))
    return recording


def test_a_thousand_recordings_stay_within_the_budget(log: MemoryLog, clock: Clock) -> None:
    for number in range(1000):
        recording = record(log, str(number))
        assert recording is not None
        log.finish(recording, EndReason.COMPLETE)
        clock.now += 0.01
        assert log.used <= BUDGET
    assert log.look("999").end == SIZE


def test_the_recording_that_ended_first_goes_first(log: MemoryLog, clock: Clock) -> None:
    first = record(log, "first", ttl=10_000)
    second = record(log, "second", size=EXPECTED_SIZE)
    assert first and second
    log.finish(second, EndReason.COMPLETE)
    clock.now += 1
    log.finish(first, EndReason.COMPLETE)
    for number in range(7):
        assert record(log, str(number))
    with pytest.raises(Expired):
        log.look("second")
    assert log.look("first").end == SIZE


def test_an_open_recording_is_never_cut(log: MemoryLog) -> None:
    opened = [record(log, str(number), size=EXPECTED_SIZE) for number in range(8)]
    assert all(opened)
    assert record(log, "one too many") is None
    with pytest.raises(StreamNotFound):
        log.look("one too many")
    assert all(log.look(str(number)).start == 0 for number in range(8))


def test_an_open_recording_counts_for_what_it_will_need(log: MemoryLog) -> None:
    """A thousand may begin in one second, before any has a byte."""
    assert sum(record(log, str(number), size=0) is not None for number in range(20)) == 8


def test_ten_thousand_expired_recordings_leave_nothing(log: MemoryLog, clock: Clock) -> None:
    for number in range(10_000):
        log.claim(f"key {number}", Claim(id=str(number), fingerprint="f"))
        recording = record(log, str(number), size=100, claim=f"key {number}", ttl=5)
        assert recording is not None
        log.finish(recording, EndReason.COMPLETE)
    assert len(log) > 10_000
    clock.now += 5
    log.sweep()
    assert log.used == 0
    clock.now += TOMBSTONE
    log.sweep()
    assert len(log) == 0


def test_what_expires_goes_without_being_asked_for(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(memory, "SWEEP_INTERVAL", 0.01)
    log = MemoryLog(max_bytes=1000, memory=BUDGET, clock=clock)
    recording = record(log, "a", size=1000, ttl=5)
    assert recording is not None
    log.finish(recording, EndReason.COMPLETE)
    clock.now += 5 + TOMBSTONE
    eventually(lambda: log.used == 0, "the recording is still kept")
    clock.now += TOMBSTONE
    eventually(lambda: len(log) == 0, "the tombstone is still kept")


def test_a_recording_without_readers_is_stopped_in_time(log: MemoryLog, clock: Clock) -> None:
    stops: list[str] = []
    recording = log.create("a", header(leave=60.0), stops.append)
    assert recording is not None
    clock.now += 100
    log.sweep()
    assert stops == [], "it has not had a reader yet"
    reader = log.attend(recording)
    reader.close()
    clock.now += 59
    log.sweep()
    assert stops == []
    log.attend(recording).close()
    clock.now += 59
    log.sweep()
    assert stops == [], "the time begins again with each reader"
    clock.now += 1
    log.sweep()
    assert stops == [EndReason.CLIENT_GONE]
