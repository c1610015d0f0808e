"""How many streams may be open over all processes that share a Redis, and what the service makes of its leases."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sse.errors import TooManyStreams
from sse.relay.lease import LIFETIME, Leases, SharedLeases, leases_in
from sse.relay.redis import SharedStore

from ..support.service import RawClient, Service, forward
from ..support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head, respond

EVENT = b"data: x\n\n"


@pytest.fixture
def shared(redis_server: Any) -> Iterator[Callable[..., SharedLeases]]:
    """`shared(per_client=2)` gives the leases of one more process."""
    stores = []

    def make(*, total: int = 0, per_client: int = 2, lifetime: int = LIFETIME) -> SharedLeases:
        stores.append(SharedStore(redis_server.url))
        return SharedLeases(stores[-1], total=total, per_client=per_client, lifetime=lifetime)

    yield make
    for store in stores:
        store.close()


def test_processes_count_together(shared: Callable[..., SharedLeases]) -> None:
    one, other = shared(), shared()
    give_back = one.take("a")
    other.take("a")
    for leases in (one, other):
        with pytest.raises(TooManyStreams) as refused:
            leases.take("a")
        assert refused.value.retry_after
    other.take("b")
    give_back()
    give_back()
    other.take("a")
    with pytest.raises(TooManyStreams):
        one.take("a")
    assert (len(one), len(other)) == (0, 3)


def test_processes_that_take_at_once_get_no_more_than_there_are(shared: Callable[..., SharedLeases]) -> None:
    processes = [shared(per_client=5) for _ in range(4)]
    taken: list[Callable[[], None]] = []
    together = threading.Barrier(20)

    def take(leases: SharedLeases) -> None:
        together.wait()
        try:
            taken.append(leases.take("a"))
        except TooManyStreams:
            return

    threads = [threading.Thread(target=take, args=(processes[number % 4],)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 5


def test_what_is_held_is_renewed_and_what_is_not_expires(
    shared: Callable[..., SharedLeases], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second of it may be lost, for the store's clock rounds off.
    living, killed = shared(lifetime=2), shared(lifetime=2)
    renewed = threading.Semaphore(0)
    renew = SharedLeases._renew

    def renew_one(leases: SharedLeases, held: list[tuple[str, str]], store: Any) -> None:
        if leases is living:
            renew(leases, held, store)
            renewed.release()

    monkeypatch.setattr(SharedLeases, "_renew", renew_one)
    held = [living.take("a"), killed.take("a")]
    third = shared(lifetime=2)
    with pytest.raises(TooManyStreams):
        third.take("a")
    # Seven thirds of the lifetime: what is not renewed has expired, with the second that is rounded off.
    for _ in range(7):
        assert renewed.acquire(timeout=10)
    held.append(third.take("a"))
    with pytest.raises(TooManyStreams):
        third.take("a")
    # Nothing is renewed where nothing is held, so their threads end.
    for give_back in held:
        give_back()


def test_leases_from_before_the_clock_was_set_back_do_not_count(
    shared: Callable[..., SharedLeases],
) -> None:
    leases = shared(per_client=1)
    client = leases._store.client
    # Of a process that was killed, three hours ahead.
    client.zadd("sse-leases:a", {"dead": client.time()[0] + 3 * 3600 + LIFETIME})
    leases.take("a")
    with pytest.raises(TooManyStreams):
        leases.take("a")


def test_what_is_given_back_while_it_is_renewed_stays_given_back(shared: Callable[..., SharedLeases]) -> None:
    leases, other = shared(per_client=1), shared(per_client=1)
    give_back = leases.take("a")
    held = list(leases._held.items())
    give_back()
    leases._renew(held, leases._store.client)
    other.take("a")


def test_a_lease_that_is_renewed_before_it_is_taken_is_taken(
    shared: Callable[..., SharedLeases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last lease that a client may have was renewed by the thread first, counted, and refused."""
    leases = shared(per_client=1)
    hold = SharedLeases._hold

    def hold_and_renew(self: SharedLeases, lease: str, key: str) -> None:
        hold(self, lease, key)
        self._renew([(lease, key)], self._store.client)

    monkeypatch.setattr(SharedLeases, "_hold", hold_and_renew)
    leases.take("a")()


def test_without_the_store_each_process_counts_for_itself(
    redis_server: Any,
    shared: Callable[..., SharedLeases],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = shared(per_client=1), shared(per_client=1)
    before = one.take("a")
    redis_server.stop()
    with pytest.raises(TooManyStreams):
        one.take("a")
    for client in ("a", "b", "c"):
        other.take(client)
        with pytest.raises(TooManyStreams):
            other.take(client)
    before()
    give_back = one.take("a")
    # One line for each process.
    away = "Redis unavailable (ConnectionError: connection refused); using per-process limits"
    assert [record.message for record in caplog.records] == [away] * 2
    # It comes back empty; what is held is there again with the next renewal.
    redis_server.start()
    monkeypatch.setattr(one._store, "_retry_at", 1.0)
    held = list(one._held.items())
    one._call(lambda store: one._renew(held, store))
    assert caplog.records[-1].message == "Redis recovered; limits are shared again"
    third = shared(per_client=1)
    with pytest.raises(TooManyStreams):
        third.take("a")
    give_back()
    third.take("a")


def test_what_processes_share_names_their_host() -> None:
    assert type(leases_in(None, total=1, per_client=1)) is Leases
    assert type(leases_in(SharedStore("redis://127.0.0.1:1/0"), total=1, per_client=1)) is SharedLeases


def test_a_silent_store_delays_no_request(upstream: Callable[..., Upstream]) -> None:
    silent = upstream(lambda connection: connection.wait_closed())
    leases = leases_in(SharedStore(f"redis://127.0.0.1:{silent.port}/0"), total=0, per_client=1)
    done = threading.Event()

    def take() -> None:
        leases.take("a")
        done.set()

    threading.Thread(target=take, daemon=True).start()
    assert done.wait(5)


# Through the service.


def endless(connection: Connection) -> None:
    connection.read_request()
    connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT))
    connection.wait_closed()


def opened(service: Service, upstream: Upstream) -> RawClient:
    client = forward(service, upstream.url)
    client.read_head()
    return client


def refused_by(service: Service, upstream: Upstream) -> tuple[int, str, str | None]:
    with opened(service, upstream) as client:
        assert client.head is not None
        return client.head.status, client.json()["code"], client.head.field("Retry-After")


def test_the_service_refuses_one_stream_too_many(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    source = upstream(endless)
    settings = {"SSE_UPSTREAMS": {"test": source.url}, "SSE_THROTTLE": ""}
    relay = service(SSE_MAX_STREAMS_PER_CLIENT=2, **settings)
    with opened(relay, source) as first, opened(relay, source) as second:
        first.read_until(EVENT)
        second.read_until(EVENT)
        assert refused_by(relay, source) == (429, "too_many_streams", "1")
        second.close()
        relay.wait_log("end=client_gone")
        with opened(relay, source) as third:
            third.read_until(EVENT)
    full = service(SSE_MAX_STREAMS=1, **settings)
    with opened(full, source) as only:
        only.read_until(EVENT)
        assert refused_by(full, source) == (503, "at_capacity", "1")


def test_what_never_became_a_stream_leaves_no_lease(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """HEAD starts no generator, and a refused or failed call has none."""
    # A connection that the upstream closes behind a response must not be kept for the POST.
    source = upstream(respond(EVENT, fields=(EVENT_STREAM, "Connection: close"), framing="close"))
    gone = upstream()
    gone.refuse()
    table = {"test": source.url, "gone": gone.url}
    relay = service(SSE_UPSTREAMS=table, SSE_THROTTLE="", SSE_MAX_STREAMS_PER_CLIENT=1)
    for _ in range(3):
        with RawClient(relay.host, relay.port) as client:
            client.request("HEAD", "/upstream/test/")
            assert client.read_head().status == 200
        for target, status in [(gone.url, 502), ("http://10.0.0.1/", 403), (source.url, 200)]:
            with forward(relay, target) as client:
                assert client.read_head().status == status
                client.read_body()


def test_services_share_leases_and_forget_a_killed_worker(
    redis_server: Any, upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    source = upstream(endless)
    settings = {"SSE_UPSTREAMS": {"test": source.url}, "SSE_STORAGE_URI": redis_server.url}
    one, other = (service(SSE_MAX_STREAMS_PER_CLIENT=1, **settings) for _ in range(2))
    with opened(one, source) as held:
        held.read_until(EVENT)
        assert refused_by(other, source) == (429, "too_many_streams", "1")
        for pid in one.worker_pids():
            os.kill(pid, signal.SIGKILL)
        held.read_body()
    # That one was not released; its thirty seconds are not waited for, they are taken off its end.
    store = redis_server.client()
    [key] = store.keys("sse-leases:*")
    assert 0 < store.ttl(key) <= LIFETIME + 1
    [(member, _)] = store.zrange(key, 0, -1, withscores=True)
    store.zincrby(key, -LIFETIME - 1, member)
    store.close()
    with opened(other, source) as client:
        client.read_until(EVENT)
