"""Look up, judge, connect, look again: what a resolver may return, and when nothing is connected."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sse.errors import SSEError, TargetNotAllowed, UpstreamTimeout, UpstreamUnreachable
from sse.protocol.target.entry import parse_upstream
from sse.protocol.target.parse import parse_target
from sse.protocol.target.table import UpstreamTable
from sse.relay.exchange import Side, Stage
from sse.relay.stream.end import EndReason
from sse.relay.upstream.client import UpstreamClient
from sse.relay.upstream.dial import Dialer
from sse.relay.upstream.lookup import MAX_CLIENT_LOOKUPS, MAX_LOOKUPS, MAX_PUBLIC_LOOKUPS
from sse.relay.upstream.pool import Pool, tls_context
from sse.relay.upstream.request import UpstreamRequest
from sse.relay.upstream.transport import Transport

from ...support.source import pieces
from ...support.upstream import SilentListener, Upstream, respond

#: One that the operator named and that no public network has, one that he named and is public, and one that he did not.
TABLE = UpstreamTable(
    [parse_upstream("inside", "http://ollama/"), parse_upstream("outside", "http://api.example.com/")],
    allow_public=True,
)


def is_of_another_test() -> bool:
    """Return whether a thread calls that looks for the Redis of an earlier test: those last as long as the process."""
    name = threading.current_thread().name
    return name.startswith("sse-") and name != "sse-look-up"


class Resolver:
    """Stands for getaddrinfo(3): gives the responses in turn, the last one for good, and notes what it was asked."""

    def __init__(self, *answers: list[str] | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if is_of_another_test():
            raise socket.gaierror("no host")
        self.asked.append(host)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, OSError):
            raise found
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [(family, socket.SOCK_STREAM, 6, "", (text, port)) for family, text in zip(families, found, strict=True)]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolver]:
    def install(*answers: list[str] | OSError) -> Resolver:
        resolver = Resolver(*answers)
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        return resolver

    return install


class TestDialer(Dialer):
    """Dials for an exchange of its own."""

    __test__ = False

    def __call__(self, host: str, port: int, *, client: str = "") -> Transport:
        return self.dial(host, port, Side(Stage.OPEN), client=client)


def dialer(table: UpstreamTable = TABLE, *, timeout: float = 5) -> TestDialer:
    return TestDialer(allows=table.allows, lists=table.lists, timeout=timeout)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of all attempts to connect; none succeeds."""
    tried: list[str] = []

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            if not is_of_another_test():
                tried.append(address[0])
            raise ConnectionRefusedError

    monkeypatch.setattr(socket, "socket", Socket)
    return tried


PRIVATE = ["127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.0.1", "fd00::1", "::1"]
NEVER = """
    0.0.0.0 169.254.169.254 169.254.0.1 100.100.100.200 168.63.129.16 192.0.0.192 224.0.0.1 255.255.255.255 240.0.0.1
    198.18.0.1 192.0.2.1 :: fe80::1 fe80::1%eth0 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:169.254.169.254
    ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2001:0:7f00:1:: 2001:db8::1 fd00:ec2::254 100::1
    ::ffff:0:127.0.0.1 2606:4700::5efe:127.0.0.1
""".split()
PUBLIC = ["8.8.8.8", "2606:4700:4700::1111"]


@pytest.mark.parametrize("address", PRIVATE + NEVER)
@pytest.mark.parametrize("host", ["api.example.com", "anybody.example.org"])
def test_a_public_name_leads_nowhere_inside(
    resolve: Callable[..., Resolver], dialled: list[str], host: str, address: str
) -> None:
    resolve([address])
    with pytest.raises(TargetNotAllowed):
        dialer()(host, 80)
    assert not dialled


@pytest.mark.parametrize("address", NEVER)
def test_a_private_name_leads_to_no_metadata_service(
    resolve: Callable[..., Resolver], dialled: list[str], address: str
) -> None:
    resolve([address])
    with pytest.raises(TargetNotAllowed):
        dialer()("ollama", 80)
    assert not dialled


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [*PRIVATE, *NEVER])
def test_one_bad_address_condemns_all(
    resolve: Callable[..., Resolver], dialled: list[str], bad: str, place: int
) -> None:
    """requests-hardened judges the first response alone."""
    answers = [*PUBLIC]
    answers.insert(place, bad)
    resolve(answers)
    with pytest.raises(TargetNotAllowed):
        dialer()("api.example.com", 80)
    assert not dialled


def test_what_is_dialled_is_what_was_judged(resolve: Callable[..., Resolver], dialled: list[str]) -> None:
    for host, address in [("api.example.com", "8.8.8.8"), ("ollama", "10.0.0.1"), ("ollama", "8.8.8.8")]:
        resolver = resolve([address], ["127.0.0.1"])
        with pytest.raises(UpstreamUnreachable):
            dialer()(host, 80)
        assert dialled == [address]
        assert resolver.asked == [host]
        dialled.clear()


def test_a_name_is_looked_up_once_for_each_connection(
    resolve: Callable[..., Resolver], upstream: Callable[..., Upstream]
) -> None:
    """DNS rebinding: one response for the check, and another one for the connection."""
    inside = upstream(respond(b"data: x\n\n"))
    resolver = resolve(["127.0.0.1"], ["169.254.169.254"])
    table = UpstreamTable([parse_upstream("inside", f"http://ollama:{inside.port}/")])
    upstreams = UpstreamClient(Pool(dialer(table), tls_context(), size=4))

    def get() -> bytes:
        target = parse_target(f"http://ollama:{inside.port}/")
        with upstreams.open(UpstreamRequest(method="GET", target=target, fields=[]), Side(Stage.OPEN)) as response:
            return b"".join(pieces(response))

    # A kept connection leads where it led when it was judged: nothing is asked.
    assert [get(), get()] == [b"data: x\n\n"] * 2
    assert (resolver.asked, len(inside.connections)) == (["ollama"], 1)
    inside.settle()
    with pytest.raises(TargetNotAllowed):
        get()
    assert (resolver.asked, len(inside.connections)) == (["ollama"] * 2, 0)


def test_the_peer_is_looked_at_when_the_connection_is_there(
    resolve: Callable[..., Resolver], upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something on the way (a proxy that hooks connect(2), say) may lead elsewhere."""
    inside = upstream()
    resolve(["127.0.0.1"])

    class Diverted(socket.socket):
        def getpeername(self) -> Any:
            return ("127.0.0.2", inside.port)

    monkeypatch.setattr(socket, "socket", Diverted)
    with pytest.raises(TargetNotAllowed):
        dialer()("ollama", inside.port)
    assert inside.wait_connection().wait_closed()


def test_a_literal_is_not_looked_up(resolve: Callable[..., Resolver], upstream: Callable[..., Upstream]) -> None:
    inside = upstream()
    resolver = resolve(["169.254.169.254"])
    table = UpstreamTable([parse_upstream("inside", inside.url)])
    dialer(table)("127.0.0.1", inside.port).close()
    for host in ("127.0.0.2", "10.0.0.1", "169.254.169.254", "::1", "fe80::1"):
        with pytest.raises(TargetNotAllowed):
            dialer(table)(host, inside.port)
    assert not resolver.asked


@pytest.mark.parametrize("failure", [socket.gaierror(-2, "Name or service not known"), OSError("broken"), []])
def test_only_listed_names_are_reported_as_unresolved(resolve: Callable[..., Resolver], failure: Any) -> None:
    resolve(failure)
    with pytest.raises(TargetNotAllowed):
        dialer()("anybody.example.org", 80)
    for host in ("ollama", "api.example.com"):
        with pytest.raises(UpstreamUnreachable):
            dialer()(host, 80)


def test_the_next_address_is_tried_after_a_refusal(
    resolve: Callable[..., Resolver], upstream: Callable[..., Upstream]
) -> None:
    inside = upstream()
    resolve(["127.0.0.9", "::1", "127.0.0.1"])
    connection = dialer()("ollama", inside.port)
    assert connection.socket.getpeername()[0] == "127.0.0.1"
    connection.close()


def test_a_connection_has_its_time(resolve: Callable[..., Resolver]) -> None:
    with SilentListener() as silent:
        resolve(["127.0.0.1"])
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            dialer(timeout=0.3)("ollama", silent.port)
        assert 0.2 < time.monotonic() - began < 2


class SlowResolver:
    """Stands for getaddrinfo(3) of names that begin with "slow"; others have the loopback address."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked = threading.Semaphore(0)
        self.slow: list[str] = []

    def __call__(self, host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host.startswith("slow"):
            self.slow.append(host)
            self.asked.release()
            self.released.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowResolver]:
    resolver = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.released.set()


@contextlib.contextmanager
def calls(shared: TestDialer, wanted: list[tuple[str, str]]) -> Iterator[list[type[BaseException]]]:
    """Dial hosts, each for a client and in a thread of its own; give the errors that they ended with."""
    ended: list[type[BaseException]] = []

    def call(host: str, client: str) -> None:
        try:
            shared(host, 80, client=client).close()
        except SSEError as error:
            ended.append(type(error))

    threads = [threading.Thread(target=call, args=each) for each in wanted]
    for thread in threads:
        thread.start()
    yield ended
    for thread in threads:
        thread.join(5)


def test_slow_names_do_not_delay_an_address(slow: SlowResolver, upstream: Callable[..., Upstream]) -> None:
    """The resolver had ten threads: twelve slow names delayed a request to an address by 7.5 s."""
    inside = upstream()
    shared = dialer(UpstreamTable([parse_upstream("literal", inside.url)], allow_public=True), timeout=0.5)
    wanted = [(f"slow{number}.example.org", f"client {number}") for number in range(MAX_PUBLIC_LOOKUPS + 4)]
    with calls(shared, wanted) as ended:
        for _ in range(MAX_PUBLIC_LOOKUPS):
            assert slow.asked.acquire(timeout=5)
        began = time.monotonic()
        shared("127.0.0.1", inside.port).close()
        assert time.monotonic() - began < 0.3
    # The bound holds, and those that found no room ended in time as well.
    assert ended == [TargetNotAllowed] * len(wanted)
    assert len(slow.slow) == MAX_PUBLIC_LOOKUPS < MAX_LOOKUPS


def test_one_client_s_slow_names_do_not_use_up_everybody_s(slow: SlowResolver, dialled: list[str]) -> None:
    shared = dialer(UpstreamTable([], allow_public=True), timeout=0.5)
    wanted = [(f"slow{number}.example.org", "one") for number in range(MAX_PUBLIC_LOOKUPS)]
    with calls(shared, wanted):
        for _ in range(MAX_CLIENT_LOOKUPS):
            assert slow.asked.acquire(timeout=5)
        began = time.monotonic()
        # Refused by its address, so it was looked up.
        with pytest.raises(TargetNotAllowed):
            shared("fast.example.org", 80, client="other")
        assert time.monotonic() - began < 0.3
    assert len(slow.slow) == MAX_CLIENT_LOOKUPS
    assert not dialled


def test_names_of_the_table_go_first(slow: SlowResolver, upstream: Callable[..., Upstream]) -> None:
    """Eight hanging look-ups, of whatever names, refused an upstream of the table."""
    inside = upstream()
    names = [f"slow{number}" for number in range(12)]
    table = UpstreamTable(
        [parse_upstream(name, f"http://{name}:{inside.port}/") for name in [*names, "ollama"]], allow_public=True
    )
    shared = dialer(table, timeout=5)
    public = [(f"slow{number}.example.org", f"client {number}") for number in range(MAX_PUBLIC_LOOKUPS)]
    with calls(shared, [(name, "one") for name in names] + public):
        for _ in range(len(names) + MAX_PUBLIC_LOOKUPS):
            assert slow.asked.acquire(timeout=5)
        # Without room for one more look-up it would end with its time.
        shared("ollama", inside.port, client="one").close()
        assert not slow.released.is_set()
        slow.released.set()


def test_a_name_is_looked_up_once_for_all_that_wait(slow: SlowResolver) -> None:
    shared = dialer(UpstreamTable([parse_upstream("slow", "http://slow/")]), timeout=0.5)
    with calls(shared, [("slow", "one")] * 8) as ended:
        assert slow.asked.acquire(timeout=5)
    assert ended == [UpstreamTimeout] * 8
    assert slow.slow == ["slow"]


def test_a_look_up_ends_with_its_exchange(slow: SlowResolver) -> None:
    """It went on for as long as a connection may take, for no client."""
    shared = dialer(UpstreamTable([parse_upstream("slow", "http://slow/")]), timeout=5)
    side = Side(Stage.OPEN)
    timer = threading.Timer(0.05, side.cancel, [EndReason.CLIENT_GONE])
    timer.start()
    began = time.monotonic()
    with pytest.raises(ConnectionAbortedError):
        shared.dial("slow", 80, side)
    assert time.monotonic() - began < 2
    timer.join()


def test_a_silent_address_leaves_time_for_the_others(resolve: Callable[..., Resolver]) -> None:
    everything = Dialer(allows=lambda host, address: True, lists=lambda host: True, timeout=1)
    began = time.monotonic()
    with SilentListener() as silent, socket.create_server(("127.0.0.2", silent.port)):
        resolve(["127.0.0.1", "127.0.0.2"])
        connection = everything.dial("ollama", silent.port, Side(Stage.OPEN))
        assert connection.socket.getpeername()[0] == "127.0.0.2"
        connection.close()
    assert time.monotonic() - began < 0.9


def test_a_cancelled_exchange_opens_no_connection(upstream: Callable[..., Upstream]) -> None:
    inside = upstream()
    side = Side(Stage.OPEN)
    side.cancel(EndReason.CLIENT_GONE)
    with pytest.raises(UpstreamUnreachable):
        dialer(UpstreamTable([parse_upstream("literal", inside.url)])).dial("127.0.0.1", inside.port, side)
    assert not inside.connections


def test_a_connection_is_probed_while_it_is_silent(upstream: Callable[..., Upstream]) -> None:
    """NATs forget a silent connection without a word."""
    inside = upstream()
    connection = dialer(UpstreamTable([parse_upstream("literal", inside.url)]))("127.0.0.1", inside.port)
    assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 120
    connection.close()
