"""When an exchange is cancelled, and that this wakes what waits."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from sse.protocol.boundary import Boundary
from sse.relay.drain import Drain, Phase
from sse.relay.exchange import FINAL_WRITE_TIMEOUT, MIN_BODY_RATE, Exchange, Limits, Stage
from sse.relay.monitor import LOOK_INTERVAL, Monitor
from sse.relay.stream.end import EndReason
from sse.relay.tcp import is_gone, reset, shut_down, unsent

from ..support.upstream import PATIENCE, _server_context, authority

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A TCP connection: our end, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.settimeout(PATIENCE)
    peer.settimeout(PATIENCE)
    with ours, peer:
        yield ours, peer


def until_gone(connection: socket.socket) -> None:
    """Wait until the peer's FIN or RST has arrived, taking no byte."""
    done = threading.Event()
    for _ in range(1000):
        if is_gone(connection):
            return
        done.wait(0.01)
    raise AssertionError("it is not gone")


def test_a_peer_that_is_there_is_not_gone(pair: Pair) -> None:
    assert not is_gone(pair[0])


def test_a_peer_that_sends_is_not_gone(pair: Pair) -> None:
    pair[1].sendall(b"pipelined")
    assert not is_gone(pair[0])


@pytest.mark.parametrize("data", [b"", b"pipelined"])
def test_a_peer_that_closed_is_gone(pair: Pair, data: bytes) -> None:
    """Bytes that were not read hide the FIN from a peek."""
    pair[1].sendall(data)
    pair[1].close()
    until_gone(pair[0])


def test_a_peer_that_half_closed_is_gone(pair: Pair) -> None:
    pair[1].shutdown(socket.SHUT_WR)
    until_gone(pair[0])


def test_a_peer_that_reset_is_gone(pair: Pair) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()
    until_gone(pair[0])


def test_a_peer_on_a_unix_socket_is_gone_when_it_closed() -> None:
    ours, peer = socket.socketpair()
    with ours:
        with peer:
            assert not is_gone(ours)
            peer.sendall(b"x")
            assert not is_gone(ours)
            ours.recv(1)
        until_gone(ours)


def blocked_read(connection: socket.socket) -> tuple[threading.Thread, list[object]]:
    """Return a thread that reads, and what it got."""
    got: list[object] = []

    def read() -> None:
        try:
            got.append(connection.recv(1))
        except (OSError, ValueError) as error:
            got.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, got


def test_shutting_down_wakes_a_blocked_read(pair: Pair) -> None:
    thread, got = blocked_read(pair[0])
    shut_down(pair[0])
    thread.join(PATIENCE)
    assert got == [b""]


def test_shutting_down_wakes_a_blocked_read_of_tls(pair: Pair) -> None:
    context = _server_context(["localhost"])
    accepted: list[ssl.SSLSocket] = []
    server = threading.Thread(target=lambda: accepted.append(context.wrap_socket(pair[1], server_side=True)))
    server.start()
    client = ssl.create_default_context(cafile=str(authority()[1])).wrap_socket(pair[0], server_hostname="localhost")
    server.join()
    with client, accepted[0]:
        thread, got = blocked_read(client)
        shut_down(client)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert got == [b""] or isinstance(got[0], OSError | ValueError)


def test_shutting_down_what_is_closed_does_nothing() -> None:
    shut_down(None)
    closed = socket.socket()
    closed.close()
    shut_down(closed)


class Connection:
    """What is waited for, in a side's eyes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def cancel(self) -> None:
        shut_down(self._connection)


def opened(client: socket.socket | None = None, **limits: float) -> Exchange:
    return Exchange(client, Limits(**limits))


def enter(exchange: Exchange, stage: Stage) -> float:
    """Let an exchange wait for one of its sides, and return since when."""
    side = exchange.client if stage in (Stage.BODY, Stage.WRITE) else exchange.upstream
    exchange.client.stop()
    exchange.upstream.stop()
    if stage in (Stage.READ, Stage.WRITE):
        exchange.upstream.stage = Stage.READ
    side.enter(stage)
    return side.since


@pytest.mark.parametrize(
    ("stage", "limits", "reason"),
    [
        pytest.param(Stage.BODY, {"send": 5.0}, EndReason.SEND_TIMEOUT, id="request body"),
        pytest.param(Stage.OPEN, {"open": 5.0}, EndReason.UPSTREAM_TIMEOUT, id="connection"),
        pytest.param(Stage.HEAD, {"head": 5.0}, EndReason.UPSTREAM_TIMEOUT, id="head"),
        pytest.param(Stage.READ, {"idle": 5.0}, EndReason.IDLE_TIMEOUT, id="silence"),
        pytest.param(Stage.READ, {"duration": 5.0}, EndReason.MAX_DURATION, id="life, reading"),
        pytest.param(Stage.WRITE, {"duration": 5.0}, EndReason.MAX_DURATION, id="life, writing"),
    ],
)
def test_each_stage_has_its_own_limit(pair: Pair, stage: Stage, limits: dict[str, float], reason: EndReason) -> None:
    exchange = opened(pair[0], **limits)
    since = enter(exchange, stage)
    exchange.check(since + 4.9)
    assert exchange.reason is None
    exchange.check(since + 5.1)
    assert exchange.reason is reason


@pytest.mark.parametrize("stage", Stage)
def test_no_limit_is_no_limit(pair: Pair, stage: Stage) -> None:
    exchange = opened(pair[0])
    exchange.check(enter(exchange, stage) + 1e9)
    assert exchange.reason is None


@pytest.mark.parametrize("stage", [Stage.BODY, Stage.OPEN, Stage.HEAD])
def test_the_life_of_a_stream_begins_with_its_body(stage: Stage) -> None:
    exchange = opened(duration=5)
    exchange.check(enter(exchange, stage) + 100)
    assert exchange.reason is None


def test_a_side_that_is_not_waited_for_has_no_limit(pair: Pair) -> None:
    exchange = opened(pair[0], send=5, idle=5)
    since = enter(exchange, Stage.READ)
    exchange.upstream.stop()
    exchange.check(since + 100)
    assert exchange.reason is None


def test_a_time_out_ends_an_attempt_and_not_the_exchange(pair: Pair) -> None:
    exchange = opened(pair[0], head=5)
    exchange.check(enter(exchange, Stage.HEAD) + 6)
    assert exchange.reason is EndReason.UPSTREAM_TIMEOUT
    assert exchange.begin_attempt(Limits(head=2)) is None
    since = enter(exchange, Stage.HEAD)
    exchange.check(since + 1.9)
    assert exchange.reason is None
    exchange.check(since + 2.1)
    assert exchange.reason is EndReason.UPSTREAM_TIMEOUT


@pytest.mark.parametrize("has_timed_out", [False, True])
@pytest.mark.parametrize("reason", [EndReason.CLIENT_GONE, EndReason.DRAINING])
def test_an_exchange_that_has_ended_begins_no_attempt(pair: Pair, reason: EndReason, has_timed_out: bool) -> None:
    exchange = opened(pair[0], head=5)
    if has_timed_out:
        exchange.check(enter(exchange, Stage.HEAD) + 6)
    exchange.cancel(reason)
    assert exchange.begin_attempt(Limits()) is reason


def test_no_attempt_begins_for_a_client_that_has_gone(pair: Pair) -> None:
    """Its leaving is seen by the event loop, which may not have run since."""
    exchange = opened(pair[0])
    exchange.watch_client()
    assert exchange.begin_attempt(Limits()) is None
    pair[1].close()
    until_gone(pair[0])
    assert exchange.begin_attempt(Limits()) is EndReason.CLIENT_GONE


def test_an_attempt_begins_for_a_client_that_may_come_back(pair: Pair) -> None:
    exchange = opened(pair[0])
    assert exchange.begin_attempt(Limits()) is None
    pair[1].close()
    until_gone(pair[0])
    assert exchange.begin_attempt(Limits()) is None


def test_an_exchange_may_end_while_it_is_checked(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that looks at all clocks would end with an error, and with it every time-out of the process."""
    exchange = Exchange(pair[0], Limits(send=1.0))
    exchange.client.enter(Stage.WRITE)
    exchange.client.is_polled = True
    monkeypatch.setattr("sse.relay.tcp.count", lambda connection, offset: exchange.close())
    exchange.check(time.monotonic())
    assert exchange.reason is None


def test_a_client_that_takes_nothing_is_stuck(pair: Pair) -> None:
    exchange = opened(pair[0], send=5)
    since = enter(exchange, Stage.WRITE)
    exchange.check(since + 1)
    exchange.check(since + 5.9)
    assert exchange.reason is None
    exchange.check(since + 6.1)
    assert exchange.reason is EndReason.SEND_TIMEOUT
    assert pair[1].recv(1) == b""


def test_a_client_that_takes_bytes_slowly_is_not_stuck(pair: Pair) -> None:
    """One write of 64 KiB may last much longer than the limit."""
    exchange = opened(pair[0], send=5)
    since = enter(exchange, Stage.WRITE)
    for second in range(1, 30):
        pair[0].sendall(b"x")
        pair[1].recv(1)
        until_acknowledged(pair[0])
        exchange.check(since + second)
    assert exchange.reason is None


@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        pytest.param(2 * MIN_BODY_RATE, None, id="slow"),
        pytest.param(MIN_BODY_RATE // 2, EndReason.SEND_TIMEOUT, id="too slow"),
        pytest.param(0, EndReason.SEND_TIMEOUT, id="nothing"),
    ],
)
def test_a_request_body_is_refused_for_its_progress(pair: Pair, rate: int, reason: EndReason | None) -> None:
    """It had SSE_SEND_TIMEOUT in all, although bytes came all the time."""
    exchange = opened(pair[0], send=5)
    since = enter(exchange, Stage.BODY)
    for second in range(60):
        exchange.check(since + second)
        if second < 5:
            assert exchange.reason is None
        if rate:
            pair[1].sendall(bytes(rate))
            until_received(pair[0], rate)
    assert exchange.reason is reason


def until_received(connection: socket.socket, count: int) -> None:
    while count and (data := connection.recv(count)):
        count -= len(data)


def until_acknowledged(connection: socket.socket) -> None:
    done = threading.Event()
    for _ in range(1000):
        if not unsent(connection):
            return
        done.wait(0.001)
    raise AssertionError("what was sent does not arrive")


@pytest.mark.parametrize("send", [5.0, 0.0])
def test_a_client_that_does_not_take_the_error_event_is_closed(pair: Pair, send: float) -> None:
    """The first reason stays; but what was blocked in reporting it stayed blocked for ever."""
    exchange = opened(pair[0], send=send)
    since = enter(exchange, Stage.WRITE)
    exchange.cancel(EndReason.MAX_DURATION)
    exchange.check(since + 0.1)
    exchange.check(since + 0.2 + FINAL_WRITE_TIMEOUT)
    assert exchange.reason is EndReason.MAX_DURATION
    assert pair[1].recv(1) == b""


def test_the_first_reason_stays(pair: Pair) -> None:
    exchange = opened(pair[0])
    exchange.cancel(EndReason.IDLE_TIMEOUT)
    exchange.lose_client(EndReason.CLIENT_GONE)
    assert exchange.reason is EndReason.IDLE_TIMEOUT


def test_a_client_still_gets_the_error_of_a_silent_upstream(pair: Pair) -> None:
    exchange = opened(pair[0])
    enter(exchange, Stage.READ)
    exchange.cancel(EndReason.IDLE_TIMEOUT)
    pair[0].sendall(b"event: error")
    assert pair[1].recv(12) == b"event: error"


def test_cancelling_shuts_the_upstream_down(pair: Pair) -> None:
    exchange = opened()
    exchange.upstream.attach(Connection(pair[0]))
    exchange.lose_client(EndReason.CLIENT_GONE)
    assert pair[1].recv(1) == b""


def test_a_client_is_shut_down_before_its_exchange_ends(pair: Pair) -> None:
    """Its server closed it in between, and the next client, whose connection got its number, was cut off."""
    closed: list[bool] = []

    class Watched(socket.socket):
        def fileno(self) -> int:
            closing.start()
            closing.join(0.1)
            closed.append(not closing.is_alive())
            return super().fileno()

    with Watched(fileno=pair[0].detach()) as connection:
        exchange = Exchange(connection, Limits())
        closing = threading.Thread(target=exchange.close)
        exchange.lose_client(EndReason.CLIENT_GONE)
        closing.join()
    assert closed == [False]


def test_a_connection_that_was_released_is_not_shut_down(pair: Pair) -> None:
    """It is in its pool, and carries another client's response in the next moment."""
    exchange = opened()
    exchange.upstream.attach(Connection(pair[0]))
    exchange.upstream.detach()
    exchange.lose_client(EndReason.CLIENT_GONE)
    pair[0].sendall(b"another client's")
    assert pair[1].recv(16) == b"another client's"


def test_nothing_is_opened_for_a_cancelled_exchange(pair: Pair) -> None:
    exchange = opened()
    exchange.lose_client(EndReason.CLIENT_GONE)
    with pytest.raises(ConnectionAbortedError):
        exchange.upstream.attach(Connection(pair[0]))


def test_a_client_is_polled_where_nothing_else_notifies(pair: Pair) -> None:
    exchange = opened(pair[0])
    exchange.watch_client()
    exchange.check(0)
    assert exchange.reason is None
    pair[1].close()
    until_gone(pair[0])
    exchange.check(0)
    assert exchange.reason is EndReason.CLIENT_GONE


def test_the_sweep_cancels_by_itself(pair: Pair) -> None:
    monitor = Monitor(Drain())
    exchange = opened(idle=0.01)
    enter(exchange, Stage.READ)
    exchange.upstream.attach(Connection(pair[0]))
    monitor.add(exchange)
    assert pair[1].recv(1) == b""
    assert exchange.reason is EndReason.IDLE_TIMEOUT
    assert len(monitor) == 1
    monitor.discard(exchange)
    monitor.discard(exchange)
    assert len(monitor) == 0


def test_a_closed_watch_is_left_alone() -> None:
    monitor = Monitor(Drain())
    first, second = opened(idle=0.01), opened(idle=0.01)
    for exchange in (first, second):
        enter(exchange, Stage.READ)
        monitor.add(exchange)
    monitor.discard(first)
    assert threading.Event().wait(3 * LOOK_INTERVAL) is False
    assert (first.reason, second.reason) == (None, EndReason.IDLE_TIMEOUT)
    monitor.discard(second)


def test_a_reset_comes_after_what_was_sent(pair: Pair) -> None:
    sent = b"x" * 10_000_000
    writer = threading.Thread(target=lambda: pair[0].sendall(sent))
    writer.start()
    got = bytearray()

    def read() -> None:
        try:
            while data := pair[1].recv(65536):
                got.extend(data)
            got.extend(b"fin")
        except ConnectionResetError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    writer.join()
    reset(pair[0], patience=PATIENCE)
    pair[0].close()
    reader.join()
    assert bytes(got) == sent


def test_a_reset_does_not_wait_for_one_who_does_not_read(pair: Pair) -> None:
    pair[0].setblocking(False)
    try:
        while pair[0].send(b"x" * 65536):
            pass
    except BlockingIOError:
        pass
    reset(pair[0], patience=0.05)
    pair[0].close()
    with pytest.raises(ConnectionResetError):
        while pair[1].recv(1 << 20):
            pass


def streaming(pair: Pair, fed: bytes) -> Exchange:
    """A stream that waits for its upstream's next bytes."""
    exchange = opened()
    exchange.boundary = Boundary()
    exchange.boundary.feed(fed)
    enter(exchange, Stage.READ)
    exchange.upstream.attach(Connection(pair[0]))
    return exchange


@pytest.mark.parametrize(
    ("fed", "phase", "is_cut"),
    [
        pytest.param(b"data: a\n\n", Phase.FINISHING, True, id="between events"),
        pytest.param(b"", Phase.FINISHING, True, id="before the first"),
        pytest.param(b"data: a", Phase.FINISHING, False, id="inside one"),
        pytest.param(b"data: a", Phase.ABORTING, True, id="inside one, too long"),
        pytest.param(b"data: a\n\n", Phase.ABORTING, True, id="between events, late"),
    ],
)
def test_draining_ends_a_silent_stream_between_events(pair: Pair, fed: bytes, phase: Phase, is_cut: bool) -> None:
    exchange = streaming(pair, fed)
    exchange.drain(phase)
    assert exchange.reason is (EndReason.DRAINING if is_cut else None)
    assert exchange.ends_at_boundary is (phase is Phase.FINISHING)
    if is_cut:
        assert pair[1].recv(1) == b""


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.READ])
def test_what_is_no_stream_yet_or_being_sent_is_cancelled_last(pair: Pair, stage: Stage) -> None:
    exchange = streaming(pair, b"data: a\n\n")
    enter(exchange, stage)
    exchange.drain(Phase.FINISHING)
    assert exchange.reason is None
    exchange.drain(Phase.ABORTING)
    assert exchange.reason is EndReason.DRAINING


def test_a_client_that_takes_no_last_words_is_left(pair: Pair) -> None:
    ours, peer = pair
    exchange = Exchange(ours, Limits())
    enter(exchange, Stage.WRITE)
    exchange.drain(Phase.ABORTING)
    assert not is_gone(peer)
    exchange.drain(Phase.CLOSED)
    assert peer.recv(1) == b""


def test_the_sweep_ends_streams_with_the_process(pair: Pair) -> None:
    drain = Drain()
    drain.begin(1)
    monitor = Monitor(drain)
    exchange = streaming(pair, b"data: a\n\n")
    monitor.add(exchange)
    assert pair[1].recv(1) == b""
    assert exchange.reason is EndReason.DRAINING
    monitor.discard(exchange)
