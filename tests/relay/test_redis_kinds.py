"""The shared store as a Cluster, behind Sentinels, over TLS and a socket file: limits and leases work on each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from limits import parse_many

from sse.errors import TooManyStreams
from sse.relay import redis as store_module
from sse.relay.lease import SharedLeases
from sse.relay.redis import CONNECTIONS, SharedStore, check_storage_uri, connect, parse_storage_uri
from sse.relay.redis_error import Busy, explain
from sse.web.access.limit_storage import Check, SharedCounts

from ..support.ending import eventually
from ..support.program import RedisCluster, RedisSentinel, RedisServer, free_port, program
from ..support.upstream import Upstream, authority


@pytest.fixture
def opened() -> Iterator[Callable[[str], SharedStore]]:
    """`opened(uri)` gives a store that is closed after the test."""
    with ExitStack() as stack:

        def make(uri: str) -> SharedStore:
            store = SharedStore(uri)
            stack.callback(store.close)
            return store

        yield make


def checks(*names: str, value: str = "2 per minute; 5 per hour") -> list[Check]:
    return [Check(name=name, items=sorted(parse_many(value))) for name in names]


def works(store: SharedStore) -> None:
    """Count and lease until both refuse."""
    counts = SharedCounts(store=store, on_unavailable=lambda: pytest.fail("the store is unavailable"))
    names = ["name:a/forward", "address:{::1}/forward", "name:}{/x"]
    for remaining in (1, 0):
        verdicts = counts.check_all(checks(*names))
        assert [verdict.exceeded for verdict in verdicts] == [None] * 3
        assert [[window.remaining for window in verdict.windows] for verdict in verdicts] == [
            [remaining, 3 + remaining]
        ] * 3
    assert [verdict.exceeded for verdict in counts.check_all(checks(*names))] == [0] * 3
    leases = SharedLeases(store, total=0, per_client=1)
    release = leases.take("a")
    with pytest.raises(TooManyStreams):
        leases.take("a")
    leases._renew(list(leases._held.items()), store.client)
    release()
    leases.take("a")()


def test_a_single_server_works(redis_server: RedisServer, opened: Callable[[str], SharedStore]) -> None:
    works(opened(redis_server.url))


def test_a_valkey_address_needs_no_other_package(
    redis_server: RedisServer, opened: Callable[[str], SharedStore]
) -> None:
    works(opened(redis_server.url.replace("redis://", "valkey://")))


def test_a_cluster_works(redis_cluster: RedisCluster, opened: Callable[[str], SharedStore]) -> None:
    check_storage_uri(redis_cluster.url)
    works(opened(redis_cluster.url))


def test_a_cluster_s_keys_of_one_client_are_on_one_node(redis_cluster: RedisCluster) -> None:
    """A script may use keys of one slot only."""
    store = SharedStore(redis_cluster.url)
    names = [f"name:{number}/forward" for number in range(30)]
    SharedCounts(store=store, on_unavailable=lambda: pytest.fail("unavailable")).check_all(checks(*names))
    kept = [client.dbsize() for client in map(RedisServer.client, redis_cluster.nodes)]
    assert sum(kept) == 60 and all(kept)
    store.close()


@pytest.mark.parametrize("kind", ["unix://", "redis+unix://", "valkey+unix://"])
def test_a_socket_file_works(kind: str, tmp_path: Path, opened: Callable[[str], SharedStore]) -> None:
    path = tmp_path / "redis.sock"
    server = RedisServer(program("redis-server", "redis-server"), tmp_path, "--unixsocket", str(path))
    server.start()
    works(opened(f"{kind}{path}"))
    server.stop()


def test_an_unknown_name_of_a_primary_is_reported(redis_sentinel: RedisSentinel) -> None:
    assert fault(f"{redis_sentinel.url}x").startswith("the Sentinels have no primary of that name")


def test_the_next_primary_is_used_after_a_failover(
    redis_sentinel: RedisSentinel, opened: Callable[[str], SharedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_INTERVAL", 0.1)
    store = opened(redis_sentinel.url)
    works(store)
    redis_sentinel.fail_over()
    eventually(store.is_available, "the new primary is not found")
    store.call(lambda client: client.flushall())
    works(store)
    assert store.client.connection_pool.get_master_address()[1] == redis_sentinel.replica.port


# TLS, and what is wrong with it


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[RedisServer]:
    ca, _ = authority()
    certificate = ca.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    tls = ["--tls-cert-file", str(chain), "--tls-key-file", str(key), "--tls-auth-clients", "no"]
    port = free_port()
    path = program("redis-server", "redis-server")
    server = RedisServer(path, tmp_path, *tls, "--tls-ca-cert-file", str(chain), "--tls-port", str(port))
    server.start()
    server.tls_port = port  # type: ignore[attr-defined]  # kept for the test
    yield server
    server.stop()


def fault(uri: str) -> str:
    """Return what is said to be wrong with a store."""
    try:
        connect(uri).set("sse-probe", 1, px=1000)
    except SharedStore(uri).errors as error:
        return explain(error)[0]
    return "nothing"


def test_a_private_authority_is_named_in_the_address(tls_server: Any, opened: Callable[[str], SharedStore]) -> None:
    _, ca_file = authority()
    uri = f"rediss://127.0.0.1:{tls_server.tls_port}/0"
    assert fault(uri) == "untrusted certificate"
    works(opened(f"{uri}?ssl_ca_certs={ca_file}"))
    assert fault(f"{uri}?ssl_ca_certs=/nowhere.pem") == "a file cannot be opened"


def test_tls_and_plain_ports_are_distinguished(tls_server: Any) -> None:
    assert fault(f"rediss://127.0.0.1:{tls_server.port}") == "TLS handshake failed"
    assert fault(f"redis://127.0.0.1:{tls_server.tls_port}") == "it closed the connection"


def test_causes_are_named(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    port = redis_server.port
    assert fault(f"redis+cluster://127.0.0.1:{port}") == "it is not a Cluster"
    assert fault(f"redis+sentinel://127.0.0.1:{port}/x") == "it is not a Sentinel"
    assert fault("redis://nowhere.invalid") == "its host name cannot be resolved"
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", "9")
        assert fault(redis_server.url) == "read-only replica"
        client.replicaof("NO", "ONE")
        client.config_set("requirepass", "right")
    assert fault(redis_server.url) == "wrong or missing password"
    with caplog.at_level(logging.WARNING, "sse"):
        SharedStore(f"redis://:wrong@127.0.0.1:{port}").is_available()
    assert [record.message for record in caplog.records] == [
        "Redis unavailable (AuthenticationError: wrong or missing password); using per-process limits"
    ]


def test_a_single_node_of_a_cluster_is_named(redis_cluster: RedisCluster) -> None:
    faults = {fault(node.url) for node in redis_cluster.nodes}
    assert faults == {"nothing", "it is a node of a Cluster"}


# Addresses


@pytest.mark.parametrize(
    ("uri", "kind", "hosts"),
    [
        ("redis+cluster://a:1,b", "cluster", (("a", 1), ("b", 6379))),
        ("rediss+cluster://u:p%40@[::1]:7", "cluster", (("::1", 7),)),
        ("valkey+sentinel://a,b:2/main", "sentinel", (("a", 26379), ("b", 2))),
        ("valkeys://a:1/2", "single", ()),
    ],
)
def test_addresses_are_read(uri: str, kind: str, hosts: Any) -> None:
    address = parse_storage_uri(uri)
    assert (address.kind, address.hosts) == (kind, hosts)
    assert address.options.get("ssl") is (True if "rediss" in uri else None)
    assert address.options.get("password") == ("p@" if "@" in uri else None)
    check_storage_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "redis+sentinel://canary:1",
        "redis+cluster://canary:1/0",
        "redis+cluster://canary:x",
        "redis+cluster://:canary@",
        "redis+cluster://a:1?ssl_canary=1",
        "redis://h?canary=1",
        "redis://canary\u2100@h",
        "http://canary",
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_storage_uri(uri)
    assert "canary" not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    for uri in ("redis://h", "valkey://h"):
        with pytest.raises(ValueError, match=r"pip install 'flask-sse-relay\[redis\]'"):
            check_storage_uri(uri)


# Connections


def test_a_burst_opens_a_bounded_number_of_connections(redis_server: RedisServer) -> None:
    """There was one for each request of a burst, 361 of them, and they stayed."""
    store = SharedStore(redis_server.url)
    results: list[Any] = []

    def wait(client: Any) -> bool:
        # Takes time, but none of a processor's: on a busy machine the store would not respond in time.
        return client.blpop("empty", 0.05) is None

    threads = [threading.Thread(target=lambda: results.append(store.call(wait))) for _ in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with redis_server.client() as client:
        # One is this client's own.
        assert 1 < len(client.client_list()) <= CONNECTIONS + 1
    assert results == [True] * 150
    store.close()


def test_callers_that_wait_for_a_connection_do_not_wait_long(upstream: Callable[..., Upstream]) -> None:
    """When the first ones find the store unavailable, the others go on at once."""
    silent = upstream(lambda connection: connection.wait_closed())
    store, missed = SharedStore(f"redis://127.0.0.1:{silent.port}"), threading.Semaphore(0)

    def call() -> None:
        store.call(lambda client: client.ping(), on_unavailable=missed.release)

    for _ in range(4 * CONNECTIONS):
        threading.Thread(target=call).start()
    began = time.monotonic()
    for _ in range(4 * CONNECTIONS):
        assert missed.acquire(timeout=10)
    # Two time-outs: of those that had a connection, and of those that waited for one.
    assert time.monotonic() - began < 4
    store.close()


def test_a_busy_store_is_not_taken_for_an_unavailable_one(caplog: pytest.LogCaptureFixture) -> None:
    store = SharedStore("redis://127.0.0.1:1")

    def busy(_: Any) -> None:
        raise Busy("no free connection")

    assert store.call(busy) is None
    assert store.call(lambda _: 1) == 1
    assert not caplog.records
