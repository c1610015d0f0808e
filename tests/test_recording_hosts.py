"""Recordings that several hosts share: each service here is a host of its own, with the same Redis."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from .support.ending import eventually
from .support.program import RedisServer
from .support.recording import BODY, Paced, location, post, read, reply, view
from .support.service import Service
from .support.upstream import Upstream

KEY: dict[str, Any] = {"Idempotency_Key": "one-key-of-two-hosts"}


@dataclass
class Hosts:
    """Two hosts, their upstream and their store."""

    one: Service
    other: Service
    upstream: Upstream
    redis: RedisServer


@pytest.fixture
def start(redis_server: RedisServer) -> Iterator[Callable[..., Hosts]]:
    """`start(app=...)` starts the hosts."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def hosts(*arguments: str, app: str = "app:app") -> Hosts:
            upstream = stack.enter_context(Upstream())
            settings: dict[str, Any] = {
                "SSE_UPSTREAMS": {"test": upstream.url},
                "SSE_THROTTLE": "",
                "SSE_STORAGE_URI": redis_server.url,
                "SSE_MAX_STREAMS_PER_CLIENT": 0,
            }
            one, other = (
                stack.enter_context(Service("--workers", "1", *arguments, app=app, **settings)) for _ in range(2)
            )
            return Hosts(one, other, upstream, redis_server)

        yield hosts


def test_every_position_can_be_read_at_another_host(start: Callable[..., Hosts]) -> None:
    hosts = start()
    for cut in range(0, len(BODY) + 1, 4):
        hosts.upstream.script = script = Paced()
        with closing(post(hosts.one)) as client:
            place = location(client)
            script.send(BODY[:cut])
            while len(client.body) < cut:
                client.read_piece()
        with closing(view(hosts.other, place, f"offset={cut}&live=tail")) as tail:
            assert tail.read_head().status == 200
            script.send(BODY[cut:])
            script.complete()
            assert BODY[:cut] + tail.read_body() == BODY
            assert tail.is_complete
        for live in ("", "&live=long-poll", "&live=tail"):
            found = read(hosts.other, place, f"offset={cut}{live}")
            assert found.body == BODY[cut:]
            assert cut == len(BODY) or found.status == 200


def test_a_token_before_a_pause_is_seen_elsewhere_at_once(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        with closing(view(hosts.other, place, "live=tail")) as tail:
            tail.read_head()
            script.send(b"data: first\n\n")
            tail.read_until(b"first\n\n")
            delays = []
            for number in range(20):
                time.sleep(0.05)
                began = time.monotonic()
                script.send(b"data: %d\n\n" % number)
                tail.read_until(b"data: %d\n\n" % number)
                delays.append(time.monotonic() - began)
            # The batch of 15 ms, and what a busy machine adds.
            assert sorted(delays)[len(delays) // 2] < 0.1, delays
    script.complete()


def test_two_requests_with_one_key_run_once(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    clients = [post(service, **KEY) for service in (hosts.one, hosts.other) * 3]
    script.send(BODY)
    script.complete()
    replies = [reply(client) for client in clients]
    assert {found.fields["location"] for found in replies} == {replies[0].fields["location"]}
    assert [found.body for found in replies] == [BODY] * 6
    assert len(hosts.upstream.requests) == 1


def test_stopping_at_another_host_while_the_upstream_is_silent(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
        began = time.monotonic()
        assert read(hosts.other, place, "action=abort", method="PATCH").status == 204
        script.wait_closed(1)
        assert time.monotonic() - began < 1
        client.read_body()
        assert client.ending == "aborted"
    found = read(hosts.other, place)
    assert found.body == b"data: a\n\n", "also what was not in the store yet"
    assert read(hosts.other, place, "offset=9").fields["stream-end"] == "stopped"


def test_erasing_at_another_host(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        assert read(hosts.other, place, method="DELETE").status == 204
        script.wait_closed(1)
    for service in (hosts.one, hosts.other):
        assert json.loads(read(service, place).body)["code"] == "stream_expired"


def test_the_last_of_two_readers_on_two_hosts_leaves(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    client = post(hosts.one, Stream_Leave="0")
    place = location(client)
    tail = view(hosts.other, place, "live=tail")
    tail.read_head()
    client.close()
    script.send(b"data: a\n\n")
    tail.read_until(b"a\n\n")
    tail.close()
    script.wait_closed(5)
    eventually(lambda: read(hosts.other, place, "offset=9").status == 410, "it does not end")
    assert read(hosts.other, place, "offset=9").fields["stream-end"] == "client_gone"


def test_a_recorder_that_is_killed_is_never_taken_for_complete(start: Callable[..., Hosts]) -> None:
    """At any moment: elsewhere there is a prefix, and then `recorder_lost`."""
    hosts = start(app="tests.apps.hasty:app")
    sent, events = [b"data: %d\n\n" % number for number in range(1000)], []

    def streaming(connection: object) -> None:
        script(connection)  # type: ignore[arg-type]  # has what the script uses

    places = []
    for _ in range(5):
        hosts.upstream.script = script = Paced()
        with closing(post(hosts.one)) as client:
            places.append(location(client))
        events.append(script)
    moment = random.Random(1).uniform(0.1, 0.6)
    killed = threading.Event()

    def feed() -> None:
        for piece in sent:
            if killed.is_set():
                return
            for script in events:
                try:
                    script.send(piece)
                except OSError:
                    return
            time.sleep(0.001)

    feeder = threading.Thread(target=feed)
    feeder.start()
    time.sleep(moment)
    (worker,) = hosts.one.worker_pids()
    os.kill(worker, signal.SIGKILL)
    killed.set()
    feeder.join()
    for place in places:
        with closing(view(hosts.other, place, "live=tail")) as tail:
            body = tail.read_body()
            assert tail.ending == "aborted"
        assert b"".join(sent).startswith(body)
        found = read(hosts.other, place, f"offset={len(body)}")
        assert (found.status, found.fields["stream-end"]) == (410, "recorder_lost")
        assert not body or read(hosts.other, place).body == body


def test_a_recorder_that_sleeps_too_long_is_fenced(start: Callable[..., Hosts]) -> None:
    hosts = start(app="tests.apps.hasty:app")
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
        eventually(lambda: read(hosts.other, place).body == b"data: a\n\n", "it is not in the store")
        (worker,) = hosts.one.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        try:
            script.send(b"data: b\n\n")
            with closing(view(hosts.other, place, "live=tail")) as tail:
                assert tail.read_body() == b"data: a\n\n"
                assert tail.ending == "aborted"
        finally:
            os.kill(worker, signal.SIGCONT)
        # It lets its upstream go, and adds nothing.
        script.wait_closed(5)
    assert read(hosts.other, place).body == b"data: a\n\n"
    assert read(hosts.other, place, "offset=9").fields["stream-end"] == "recorder_lost"


def test_the_store_is_unavailable(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
        hosts.redis.stop()
        script.send(b"data: b\n\n")
        client.read_until(b"b\n\n")
        for method, query in (("GET", ""), ("GET", "live=tail"), ("PATCH", "action=abort"), ("DELETE", "")):
            found = read(hosts.other, place, query, method=method)
            assert found.status == 503
            assert json.loads(found.body)["code"] == "store_unavailable"
            assert int(found.fields["retry-after"]) > 0
        unsure = reply(post(hosts.other, **KEY))
        assert (unsure.status, json.loads(unsure.body)["code"]) == (503, "store_unavailable")
        assert len(hosts.upstream.requests) == 1, "a request that must not run twice is not run"
        hosts.redis.start()
        script.send(b"data: c\n\n")
        script.complete()
        assert client.read_body() == b"data: a\n\ndata: b\n\ndata: c\n\n"

    def is_whole() -> bool:
        return read(hosts.other, place).body == b"data: a\n\ndata: b\n\ndata: c\n\n"

    eventually(is_whole, "what was missing is not appended later")


def test_a_stopping_host_hands_its_readers_over(start: Callable[..., Hosts]) -> None:
    """SIGTERM: readers go on elsewhere at once; the recorder goes on for as long as the process may."""
    hosts = start("--graceful-timeout", "8")
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
        began = time.monotonic()
        hosts.one.terminate()
        client.read_body()
        assert client.ending == "aborted"
        assert time.monotonic() - began < 3
    with closing(view(hosts.other, place, "offset=9&live=tail")) as tail:
        tail.read_head()
        script.send(b"data: b\n\n")
        tail.read_until(b"b\n\n")
        # An event that has begun is finished, and then the recorder ends.
        script.send(b"data: c")
        time.sleep(max(0.0, 4.0 - (time.monotonic() - began)))
        script.send(b"\n\ndata: d\n\n")
        assert tail.read_body().startswith(b"data: b\n\ndata: c\n\ndata: d\n\n")
        assert tail.ending == "aborted"
    assert 3.5 < time.monotonic() - began < 8
    assert hosts.one.wait_exit() == 0
    found = read(hosts.other, place, "offset=1000")
    assert found.fields["stream-end"] == "draining"


def test_a_recording_that_ends_while_its_host_stops_is_complete(start: Callable[..., Hosts]) -> None:
    hosts = start()
    hosts.upstream.script = script = Paced()
    with closing(post(hosts.one)) as client:
        place = location(client)
        hosts.one.terminate()
        client.read_body()
    script.send(BODY)
    script.complete()
    assert hosts.one.wait_exit() == 0
    found = read(hosts.other, place)
    assert (found.body, found.fields["stream-closed"]) == (BODY, "true")


def test_a_thousand_readers_that_vanish_leave_nothing(start: Callable[..., Hosts]) -> None:
    hosts = start()
    places = []
    for _ in range(125):
        hosts.upstream.script = script = Paced()
        with closing(post(hosts.one, Stream_Leave="600")) as client:
            places.append(location(client))
    (pid,) = hosts.other.worker_pids()

    def used() -> tuple[int, int]:
        with hosts.redis.client() as client:
            connections = len(client.client_list())
        return len(os.listdir(f"/proc/{pid}/fd")), connections

    before = used()
    tails = [view(hosts.other, place, "live=tail") for place in places for _ in range(8)]
    for tail in tails:
        assert tail.read_head().status == 200
    assert used()[1] <= before[1] + 20, "a connection of the store a reader"
    for tail in tails:
        tail.reset()
    eventually(lambda: used()[0] <= before[0] + 20, "descriptors are left")
    del script
