"""What channels promise whatever keeps them: one process's memory, or a Redis between two."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from sse import ServerSentEvent
from sse.errors import StoreUnavailable
from sse.relay.channel.history import HistoryLimits
from sse.relay.channel.hub import Channels
from sse.relay.channel.reader import ChannelReader
from sse.relay.channel.redis import RedisChannels

from ..support.program import RedisCluster, RedisSentinel, RedisServer

PATIENCE = 10.0

#: Makes the channels of a process; in memory all are those of the one process.
Make = Callable[..., Channels]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    hubs: list[Channels] = []

    def make(limits: HistoryLimits | None = None) -> Channels:
        limits = limits or HistoryLimits()
        if request.param == "redis":
            return RedisChannels(limits, request.getfixturevalue("redis_server").url)
        if not hubs:
            hubs.append(Channels(limits))
        return hubs[0]

    return make


def publish(hub: Channels, channel: str, data: str = "x") -> str:
    return hub.publish(channel, ServerSentEvent(data=data))


def subscribe(hub: Channels, *names: str, since: str = "", replay: int = 0) -> ChannelReader:
    reader = hub.subscribe(names, since=since, replay=replay)
    assert reader is not None
    return reader


def blocks(reader: ChannelReader) -> Iterator[bytes]:
    """Yield blocks as they come, up to the end."""
    deadline = time.monotonic() + PATIENCE
    while (piece := reader.read()) != b"":
        if piece is None:
            assert time.monotonic() < deadline, "nothing came"
            reader.wait(1)
            continue
        yield from piece.split(b"\n\n")[:-1]


def data_of(reader: ChannelReader, count: int) -> list[str]:
    """Return the data of so many events."""
    found: list[str] = []
    for block in blocks(reader):
        assert b"event: reset" not in block
        found += [text.decode() for text in re.findall(rb"^data: (.*)$", block, re.MULTILINE)]
        if len(found) >= count:
            break
    return found


def first_id(reader: ChannelReader) -> str:
    return re.fullmatch(rb"id: (\S+)", next(blocks(reader)))[1].decode()  # type: ignore[index]  # None fails the test as well


def test_what_one_process_publishes_another_reads(make: Make) -> None:
    one, other = make(), make()
    reader = subscribe(other, "a")
    first_id(reader)
    last = publish(one, "a", "hello")
    assert next(blocks(reader)) == f"id: {last}\ndata: hello".encode()


def test_a_reader_gets_each_channels_events_in_order(make: Make) -> None:
    one, other = make(), make()
    reader = subscribe(other, "a", "b")
    for number in range(200):
        publish(one, "ab"[number % 2], str(number))
    assert data_of(reader, 200) == [str(number) for number in range(200)]


def test_a_reader_comes_back_to_another_process(make: Make) -> None:
    one, other = make(), make()
    reader = subscribe(one, "a", "b")
    mark = first_id(reader)
    reader.close()
    for number in range(5):
        publish(one, "ab"[number % 2], str(number))
    assert data_of(subscribe(other, "a", "b", since=mark), 5) == ["0", "1", "2", "3", "4"]
    assert data_of(subscribe(other, "b", since=mark), 2) == ["1", "3"]


def test_past_events_come_where_they_are_asked_for(make: Make) -> None:
    one, other = make(), make()
    for number in range(5):
        publish(one, "a", str(number))
    assert data_of(subscribe(other, "a", replay=2), 2) == ["3", "4"]


def test_a_history_that_is_too_short_is_reset(make: Make) -> None:
    one, other = make(HistoryLimits(events=3)), make(HistoryLimits(events=3))
    first = publish(one, "a")
    for _ in range(5):
        last = publish(one, "a")
    assert next(blocks(subscribe(other, "a", since=first))).endswith(b'data: {"channels":["a"]}')
    assert data_of(subscribe(other, "a", since=last.replace("-6", "-3")), 3) == ["x"] * 3


def test_a_history_is_bounded_in_bytes(make: Make) -> None:
    limits = HistoryLimits(bytes=100)
    one, other = make(limits), make(limits)
    for _ in range(9):
        publish(one, "a", "x" * 40)
    reader = subscribe(other, "a", replay=99)
    first_id(reader)
    piece = reader.read()
    assert piece is not None
    assert 1 <= piece.count(b"data: ") <= 2


def test_an_event_above_all_bounds_is_still_delivered(make: Make) -> None:
    limits = HistoryLimits(bytes=100)
    one, other = make(limits), make(limits)
    reader = subscribe(other, "a")
    first_id(reader)
    for data in ("x" * 5000, "next"):
        publish(one, "a", data)
        assert data_of(reader, 1) == [data]


def test_a_closed_channel_gives_the_rest_and_ends(make: Make) -> None:
    one, other = make(), make()
    reader = subscribe(other, "a")
    last = publish(one, "a", "rest")
    end = one.close_channel("a")
    assert list(blocks(reader))[1:] == [f"id: {last}\ndata: rest".encode(), f"id: {end}".encode()]
    assert other.subscribe(["a"], since=last) is None
    assert make().subscribe(["a"], since=end) is None


def test_returning_readers_get_each_event_exactly_once(make: Make) -> None:
    """A publisher at full speed, and readers that leave after each piece."""
    limits = HistoryLimits(events=100_000, bytes=100_000_000)
    one, other = make(limits), make(limits)
    count, readers = 500, 20
    ready, seen = threading.Barrier(readers + 1), [list[str]() for _ in range(readers)]

    def read(found: list[str]) -> None:
        reader = subscribe(other, "a", "b")
        since = first_id(reader)
        ready.wait()
        while len(found) < count:
            reader.close()
            reader = subscribe(other, "a", "b", since=since)
            for block in blocks(reader):
                number, *data = block.decode().split("\n")
                since = number.removeprefix("id: ")
                assert not data or data[0].startswith("data: "), block
                found += [line.removeprefix("data: ") for line in data]
                if data:
                    break
        reader.close()

    threads = [threading.Thread(target=read, args=(found,)) for found in seen]
    for thread in threads:
        thread.start()
    ready.wait()
    for number in range(count):
        publish(one, "ab"[number % 2], str(number))
    for thread in threads:
        thread.join(60)
    assert all(found == [str(number) for number in range(count)] for found in seen)


# Redis alone


@pytest.mark.parametrize(
    ("followed", "batch"),
    [pytest.param(["a"], 50, id="one-channel-is-new"), pytest.param([], 1, id="both-are-read-one-by-one")],
)
def test_no_history_overtakes_an_unread_event(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, followed: list[str], batch: int
) -> None:
    """A reader of both lost the first channel's event, which the listener read after the second's history."""
    from sse.relay.channel import redis as module

    monkeypatch.setattr(module, "BATCH", batch)
    one, other = RedisChannels(HistoryLimits(), redis_server.url), RedisChannels(HistoryLimits(), redis_server.url)
    # The listener then makes no further call before it reads histories.
    first_id(subscribe(other, *followed, "other"))
    mark = publish(one, "unfollowed")
    calls, call, take, has_read = [0], other._call, other.take, threading.Event()

    def publish_before(operation: Callable[[object], object], failed: str) -> object:
        if threading.current_thread() is other._listener:
            calls[0] += 1
            if calls[0] == 2 - len(followed):
                for number in range(3):
                    publish(one, "aba"[number], str(number))
        return call(operation, failed)

    def take_when_read(name: str, message: bytes) -> None:
        assert has_read.wait(PATIENCE)
        take(name, message)

    monkeypatch.setattr(other, "_call", publish_before)
    monkeypatch.setattr(other, "take", take_when_read)
    reader = subscribe(other, "a", "b", since=mark)
    first_id(reader)
    piece = reader.read()
    has_read.set()
    assert re.findall(rb"data: (.*)", piece or b"") == [b"0", b"1", b"2"]


def test_a_missed_event_overtakes_no_other(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Cluster's nodes can lose what they pass on: the history of that channel alone was read then."""
    from sse.relay.channel import redis as module

    monkeypatch.setattr(module, "RETRY_INTERVAL", 0)
    one, other = RedisChannels(HistoryLimits(), redis_server.url), RedisChannels(HistoryLimits(), redis_server.url)
    take, taken, has_read = other.take, list[str](), threading.Event()

    def take_all_but_one(name: str, message: bytes) -> None:
        taken.append(name)
        if len(taken) == 2:
            publish(one, "b", "2")
            publish(one, "a", "3")
        if len(taken) > 1:
            assert len(taken) == 2 or has_read.wait(PATIENCE)
            take(name, message)

    monkeypatch.setattr(other, "take", take_all_but_one)
    reader = subscribe(other, "a", "b")
    first_id(reader)
    publish(one, "a", "0")
    publish(one, "a", "1")
    while (piece := reader.read()) is None:
        reader.wait(PATIENCE)
    has_read.set()
    assert re.findall(rb"data: (.*)", piece) == [b"0", b"1", b"2", b"3"]


def test_an_event_is_one_script_and_a_second_reader_is_none(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        publish(hub, "a")
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        publish(hub, "a")
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1
        subscribe(hub, "a")
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        connections = client.info("clients")["connected_clients"]
        for _ in range(100):
            subscribe(hub, "a")
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls
        assert client.info("clients")["connected_clients"] == connections


def test_every_key_expires(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    subscribe(hub, "a")
    publish(hub, "a")
    hub.close_channel("b")
    with redis.Redis.from_url(redis_server.url) as client:
        keys = client.keys()
        assert len(keys) == 6
        assert all(client.ttl(key) > 0 for key in keys)


def test_age_ends_a_history_there_too(redis_server: RedisServer) -> None:
    limits = HistoryLimits(seconds=1)
    hub = RedisChannels(limits, redis_server.url)
    mark = publish(hub, "b")
    publish(hub, "a", "missed")
    with redis.Redis.from_url(redis_server.url) as client:
        deadline = time.monotonic() + PATIENCE
        while client.exists("sse:{channel}:log:a"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    publish(hub, "b")
    assert b"event: reset" in next(blocks(subscribe(hub, "a", since=mark)))


def test_a_store_that_was_flushed_is_noticed(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    for _ in range(3):
        last = publish(hub, "a")
    reader = subscribe(hub, "a")
    first_id(reader)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    fresh = publish(hub, "a", "new")
    assert fresh.endswith("-1")
    assert next(blocks(reader)).startswith(b"event: reset")
    assert b"event: reset" in next(blocks(subscribe(hub, "a", since=last)))


def test_a_counter_that_was_evicted_begins_another_epoch(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    for _ in range(3):
        last = publish(hub, "a", "old")
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete("sse:{channel}:number")
    assert publish(hub, "a", "new").endswith("-1")
    reader = subscribe(hub, "a", replay=9)
    assert data_of(reader, 1) == ["new"]
    assert b"event: reset" in next(blocks(subscribe(hub, "a", since=last)))


def test_a_store_that_is_away_refuses_and_readers_stay(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    other = RedisChannels(HistoryLimits(), redis_server.url)
    reader = subscribe(hub, "a")
    first_id(reader)
    redis_server.stop()
    with pytest.raises(StoreUnavailable):
        publish(hub, "a")
    with pytest.raises(StoreUnavailable):
        subscribe(hub, "b")
    redis_server.start()
    publish(other, "a", "meanwhile")
    assert any(b"meanwhile" in block or b"reset" in block for block in blocks(reader))


def test_a_connection_that_was_cut_misses_nothing(redis_server: RedisServer) -> None:
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    reader = subscribe(hub, "a")
    first_id(reader)
    with redis.Redis.from_url(redis_server.url) as client:
        for number in range(50):
            if number % 10 == 0:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            publish(hub, "a", str(number))
    assert data_of(reader, 50) == [str(number) for number in range(50)]


def test_a_store_that_hangs_is_noticed(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-open connection: nothing comes, and nothing fails."""
    import os
    import signal

    from sse.relay.channel import redis as module

    monkeypatch.setattr(module, "PING_INTERVAL", 0.2)
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    reader = subscribe(hub, "a")
    first_id(reader)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable):
            publish(hub, "a")
        with pytest.raises(StoreUnavailable):
            subscribe(hub, "b")
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    last = publish(hub, "a", "after")
    assert any(block == f"id: {last}\ndata: after".encode() for block in blocks(reader))


def test_readers_that_have_left_leave_nothing(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from sse.relay.channel import redis as module

    monkeypatch.setattr(module, "PING_INTERVAL", 0.1)
    hub = RedisChannels(HistoryLimits(), redis_server.url)
    readers = [subscribe(hub, "a", f"user.{number}") for number in range(100)]
    with redis.Redis.from_url(redis_server.url) as client:
        assert len(client.pubsub_channels()) == 102
        for reader in readers:
            reader.close()
        deadline = time.monotonic() + PATIENCE
        while len(client.pubsub_channels()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert hub._channels == {}
    publish(hub, "a")
    assert data_of(subscribe(hub, "a", replay=1), 1) == ["x"]


def test_channels_in_a_cluster(redis_cluster: RedisCluster) -> None:
    one, other = RedisChannels(HistoryLimits(), redis_cluster.url), RedisChannels(HistoryLimits(), redis_cluster.url)
    names = [f"channel.{number}" for number in range(8)]
    reader = subscribe(other, *names)
    last = first_id(reader)
    for name in names:
        publish(one, name, name)
    assert data_of(reader, len(names)) == names
    assert data_of(subscribe(one, *names, since=last), len(names)) == names


def test_channels_over_a_failover(redis_sentinel: RedisSentinel) -> None:
    """Readers stay, and get what is published to the replica that has become the primary."""
    one, other = RedisChannels(HistoryLimits(), redis_sentinel.url), RedisChannels(HistoryLimits(), redis_sentinel.url)
    reader = subscribe(other, "a")
    first_id(reader)
    publish(one, "a", "before")
    assert data_of(reader, 1) == ["before"]
    # What the replica lacks is lost with the primary, and readers then get a reset.
    redis_sentinel.wait_replicated()
    redis_sentinel.fail_over()
    deadline = time.monotonic() + 30
    while True:
        try:
            publish(one, "a", "after")
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert data_of(reader, 1) == ["after"]
