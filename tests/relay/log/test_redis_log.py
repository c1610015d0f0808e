"""The Redis log when the store, or the recorder, fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from sse.errors import StoreUnavailable, StreamNotFound
from sse.relay.log.base import Claim, Interrupted, Trimmed
from sse.relay.log.redis import RedisLog
from sse.relay.log.store import Keys
from sse.relay.log.upload import Uploads
from sse.relay.stream.end import EndReason

from ...support.ending import eventually
from ...support.log import QUICK, header, read_all, redis_log
from ...support.program import RedisServer


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def record(log: RedisLog, id: str = "id", **options: Any) -> Any:
    """Return a new recording; what it was stopped for is in `stops`."""
    stops: list[str] = []
    recording = log.create(id, header(**options), stops.append)
    assert recording is not None
    return recording, stops


def wait_written(log: RedisLog, id: str, end: int) -> None:
    def is_there() -> bool:
        try:
            return log.look(id).end == end
        except (StreamNotFound, StoreUnavailable):
            return False

    eventually(is_there, f"{end} bytes are not in the store")


def test_an_entry_is_named_for_the_position_behind_it(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, _ = record(log)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    recording.append(b"de")
    log.finish(recording, EndReason.COMPLETE)
    wait_written(other, "id", 5)
    entries = client.xrange(Keys.of("id").data)
    assert entries == [(b"3-0", {b"b": b"abc"}), (b"5-0", {b"b": b"de"}), (b"5-1", {b"r": b"complete"})]


def test_every_key_expires(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    for id_ in "ab":
        log.claim(id_, Claim(id=id_, fingerprint="f"))
        recording, _ = record(log, id_, claim=id_)
        recording.append(b"abc")
        wait_written(other, id_, 3)
        other.follow(id_, other.look(id_), 0)
    other.stop("a", erase=False)
    log.finish(recording, EndReason.COMPLETE)
    eventually(lambda: other.look("b").reason is not None, "the end is not in the store")
    keys = client.keys()
    assert len(keys) >= 8
    assert [key for key in keys if client.pttl(key) < 0] == []


def test_ids_are_not_in_the_store(redis_server: RedisServer, client: Any) -> None:
    """Who can list the keys of a store can not read by them at the gateway."""
    recording, _ = record(redis_log(redis_server.url), "a-secret-id")
    recording.append(b"abc")
    assert not any(b"a-secret-id" in key for key in client.keys())


def test_finished_recordings_leave_nothing(redis_server: RedisServer, client: Any) -> None:
    timing = replace(QUICK, tombstone=0.2, claim=0.3, alive=0.3, tick=0.1, linger=0.01)
    log = redis_log(redis_server.url, timing=timing)
    threads = threading.active_count()
    for number in range(10_000):
        recording, _ = record(log, str(number), ttl=1)
        recording.append(b"abc")
        log.finish(recording, EndReason.COMPLETE)
    eventually(log.has_written, "not all are in the store")
    eventually(lambda: client.dbsize() == 0, f"left: {client.keys()[:5]}")
    assert log.used == 0
    assert len(log) == 0
    assert threading.active_count() <= threads + 2


def test_readers_share_one_connection(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    readers = []
    for number in range(100):
        recording, _ = record(log, str(number))
        readers += [other.follow(str(number), other.look(str(number)), 0) for _ in range(8)]
        recording.append(b"abc")
    for reader in readers:
        reader.wait(10)
        assert reader.read() == b"abc"
    blocked = [c for c in client.client_list() if c["cmd"] in ("xread", "xread|block")]
    assert len(blocked) <= 2, "one of each process"
    for reader in readers:
        reader.close()
    eventually(lambda: len(other) == 0, "readers are left")


def test_a_recorder_that_has_gone_is_noticed(redis_server: RedisServer) -> None:
    # A process that renews nothing any more, as if it was killed.
    dead = redis_log(redis_server.url, timing=replace(QUICK, tick=1000.0))
    other = redis_log(redis_server.url)
    recording, stops = record(dead)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    reader = other.follow("id", other.look("id"), 0)
    with pytest.raises(Interrupted, match=EndReason.RECORDER_LOST):
        read_all(reader)
    assert reader.offset == 3
    assert other.look("id").reason == EndReason.RECORDER_LOST
    # It was only asleep: its bytes are refused, and it stops its upstream.
    recording.append(b"late")
    eventually(lambda: stops == [EndReason.RECORDER_LOST], "it is not fenced")
    assert other.read("id", 0, 10) == b"abc"


def test_a_recorder_that_lives_is_left_alone(redis_server: RedisServer) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, stops = record(log)
    reader = other.follow("id", other.look("id"), 0)
    # Several looks of the silent reader.
    reader.wait(4 * QUICK.silence)
    assert other.look("id").reason is None
    recording.append(b"abc")
    reader.wait(10)
    assert reader.read() == b"abc"
    assert stops == []


def test_a_lost_reply_appends_nothing_twice(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, _ = record(log)
    losses, take = iter([True] * 3), Uploads._has_appended

    def lose(self: Uploads, entry: Any, result: Any, client: Any) -> bool:
        if next(losses, False):
            result = redis.ConnectionError("lost")
        return take(self, entry, result, client)

    monkeypatch.setattr(Uploads, "_has_appended", lose)
    for number in range(50):
        recording.append(bytes([number]) * 3)
        time.sleep(0.005)
    log.finish(recording, EndReason.COMPLETE)
    eventually(log.has_written, "it is not written")
    assert other.read("id", 0, 1000) == b"".join(bytes([number]) * 3 for number in range(50))
    assert next(losses, None) is None


def test_a_tail_that_the_store_has_lost_is_appended_again(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, _ = record(log)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    recording.append(b"def")
    wait_written(other, "id", 6)
    # A failover to a replica that had only the first append.
    client.xdel(Keys.of("id").data, "6-0")
    client.execute_command("XSETID", Keys.of("id").data, "3-0")
    client.hset(Keys.of("id").meta, "end", 3)
    recording.append(b"ghi")
    log.finish(recording, EndReason.COMPLETE)
    eventually(log.has_written, "it is not written")
    assert other.read("id", 0, 100) == b"abcdefghi"
    assert other.look("id").reason == EndReason.COMPLETE


def test_a_flush_is_repaired(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, stops = record(log)
    reader = other.follow("id", other.look("id"), 0)
    recording.append(b"abc")
    reader.wait(10)
    assert reader.read() == b"abc"
    client.flushall()
    recording.append(b"def")
    log.finish(recording, EndReason.COMPLETE)
    assert read_all(reader) == b"def"
    wait_written(other, "id", 6)
    assert other.read("id", 0, 100) == b"abcdef"
    assert stops == []


def test_a_flush_while_nothing_comes_is_repaired(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, stops = record(log)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    reader = other.follow("id", other.look("id"), 3)
    client.flushall()
    wait_written(other, "id", 3)
    recording.append(b"def")
    reader.wait(10)
    assert reader.read() == b"def"
    assert stops == []


def test_what_cannot_be_repaired_is_a_visible_gap(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url, max_bytes=1000), redis_log(redis_server.url)
    recording, _ = record(log)
    reader = other.follow("id", other.look("id"), 0)
    recording.append(b"a" * 900)
    reader.wait(10)
    assert reader.read() == b"a" * 900
    client.flushall()
    for _ in range(3):
        recording.append(b"b" * 900)
    log.finish(recording, EndReason.COMPLETE)
    wait_written(other, "id", 3600)
    with pytest.raises(Trimmed):
        read_all(reader)
    assert other.look("id").start == 2600
    with pytest.raises(Trimmed):
        other.read("id", 900, 10)


def test_an_evicted_recording_is_a_visible_gap(redis_server: RedisServer, client: Any) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, _ = record(log)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    client.delete(Keys.of("id").data)
    with pytest.raises(Trimmed):
        read_all(other.follow("id", other.look("id"), 0))
    recording.append(b"def")
    wait_written(other, "id", 6)
    with pytest.raises(Trimmed):
        other.read("id", 0, 10)
    assert other.look("id").start == 3


def test_recording_goes_on_without_the_store(redis_server: RedisServer) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, stops = record(log)
    local = log.attend(recording)
    recording.append(b"abc")
    wait_written(other, "id", 3)
    redis_server.stop()
    with pytest.raises(StoreUnavailable):
        other.look("id")
    assert log.create("new", header(), print) is None
    recording.append(b"def")
    assert local.read() == b"abcdef"
    redis_server.start()
    recording.append(b"ghi")
    log.finish(recording, EndReason.COMPLETE)
    wait_written(other, "id", 9)
    assert other.read("id", 0, 100) == b"abcdefghi"
    assert stops == []


def test_a_store_that_hangs_loses_nothing(redis_server: RedisServer) -> None:
    log, other = redis_log(redis_server.url), redis_log(redis_server.url)
    recording, stops = record(log)
    reader = other.follow("id", other.look("id"), 0)
    recording.append(b"abc")
    reader.wait(10)
    os.kill(redis_server.pid, signal.SIGSTOP)
    recording.append(b"def")
    with pytest.raises(StoreUnavailable):
        other.look("id")
    os.kill(redis_server.pid, signal.SIGCONT)
    recording.append(b"ghi")
    log.finish(recording, EndReason.COMPLETE)
    assert read_all(reader) == b"abcdefghi"
    assert stops == []


def test_the_claim_of_a_dead_process_is_taken_over(redis_server: RedisServer) -> None:
    dead = redis_log(redis_server.url, timing=replace(QUICK, tick=1000.0, alive=0.2))
    other = redis_log(redis_server.url)
    dead.claim("key", Claim(id="one", fingerprint="f"))
    assert other.claim("key", Claim(id="two", fingerprint="f")).id == "one"
    eventually(lambda: other.claim("key", Claim(id="two", fingerprint="f")).id == "two", "it is still its claim")


def test_the_claim_of_a_living_process_is_kept(redis_server: RedisServer) -> None:
    log = redis_log(redis_server.url, timing=replace(QUICK, alive=0.5, tick=0.05))
    other = redis_log(redis_server.url)
    log.claim("key", Claim(id="one", fingerprint="f"))
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert other.claim("key", Claim(id="two", fingerprint="f")).id == "one"
        time.sleep(0.05)
