"""The Redis log in a Cluster, and over a Sentinel's failover."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse.relay.log.store import Timing
from sse.relay.stream.end import EndReason

from ...support.ending import eventually
from ...support.log import header, read_all, redis_log
from ...support.program import RedisCluster, RedisSentinel, program


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    cluster = RedisCluster(program("redis-server", "redis-server"), tmp_path)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[RedisSentinel]:
    sentinel = RedisSentinel(program("redis-server", "redis-server"), tmp_path)
    sentinel.start()
    yield sentinel
    sentinel.stop()


def test_recordings_of_all_slots_of_a_cluster(cluster: RedisCluster) -> None:
    # The usual times: on a busy machine, 40 recordings are not renewed as often as the tests' short ones ask.
    log, other = (redis_log(cluster.url, timing=Timing()) for _ in range(2))
    stops: list[EndReason] = []
    recordings = {}
    for number in range(40):
        recordings[str(number)] = log.create(str(number), header(), stops.append)
    readers = {id_: other.follow(id_, other.look(id_), 0) for id_ in recordings}
    for id_, recording in recordings.items():
        assert recording is not None
        for part in range(5):
            recording.append(f"{id_}:{part} ".encode())
            time.sleep(0.001)
        log.finish(recording, EndReason.COMPLETE)
    for id_, reader in readers.items():
        assert read_all(reader) == "".join(f"{id_}:{part} " for part in range(5)).encode()
        reader.close()
    recording = log.create("stopped", header(), stops.append)
    assert recording is not None
    other.stop("stopped", erase=False)
    # Once by mail, and once more if the other process has not waited until the recorder ends.
    eventually(lambda: bool(stops), "the mail does not arrive")
    assert set(stops) == {EndReason.STOPPED}
    log.close()
    other.close()


def test_a_failover_loses_nothing(sentinel: RedisSentinel) -> None:
    log, other = redis_log(sentinel.url), redis_log(sentinel.url)
    stops: list[EndReason] = []
    recording = log.create("id", header(), stops.append)
    assert recording is not None
    reader = other.follow("id", other.look("id"), 0)
    for part in range(20):
        recording.append(f"before {part} ".encode())
        time.sleep(0.005)
    sentinel.fail_over()
    for part in range(20):
        recording.append(f"after {part} ".encode())
        time.sleep(0.005)
    log.finish(recording, EndReason.COMPLETE)
    expected = "".join(f"{when} {part} " for when in ("before", "after") for part in range(20)).encode()
    assert read_all(reader) == expected
    eventually(log.has_written, "it is not written")
    assert other.read("id", 0, 1000) == expected
    assert stops == []
    log.close()
    other.close()
