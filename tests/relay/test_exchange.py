"""When an exchange is cut, and that cutting wakes whoever waits."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator

import pytest

from sse.protocol.boundary import Boundary
from sse.relay.drain import Drain, Phase
from sse.relay.exchange import (
    LAST_WORDS,
    SWEEP_INTERVAL,
    EndReason,
    Limits,
    Stage,
    Watch,
    Watches,
    _unsent,
    is_gone,
    reset_on_close,
    shut_down,
)

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
    """Bytes nobody has read hide the FIN from whoever peeks."""
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


def watched(client: socket.socket | None = None, **limits: float) -> Watch:
    return Watch(client, Limits(**limits))


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
def test_each_stage_has_its_own_limit(stage: Stage, limits: dict[str, float], reason: EndReason) -> None:
    watch = watched(**limits)
    watch.enter(stage)
    watch.check(watch.since + 4.9)
    assert watch.reason is None
    watch.check(watch.since + 5.1)
    assert watch.reason is reason


@pytest.mark.parametrize("stage", Stage)
def test_no_limit_is_no_limit(pair: Pair, stage: Stage) -> None:
    watch = watched(pair[0])
    watch.enter(stage)
    watch.check(watch.since + 1e9)
    assert watch.reason is None


@pytest.mark.parametrize("stage", [Stage.BODY, Stage.OPEN, Stage.HEAD])
def test_the_life_of_a_stream_begins_with_its_body(stage: Stage) -> None:
    watch = watched(duration=5)
    watch.enter(stage)
    watch.check(watch.since + 100)
    assert watch.reason is None


def test_a_client_that_takes_nothing_is_stuck(pair: Pair) -> None:
    watch = watched(pair[0], send=5)
    watch.enter(Stage.WRITE)
    watch.check(watch.since + 1)
    watch.check(watch.since + 5.9)
    assert watch.reason is None
    watch.check(watch.since + 6.1)
    assert watch.reason is EndReason.SEND_TIMEOUT
    assert pair[1].recv(1) == b""


def test_a_client_that_takes_bytes_slowly_is_not_stuck(pair: Pair) -> None:
    """One write of 64 KiB may last much longer than the limit."""
    watch = watched(pair[0], send=5)
    watch.enter(Stage.WRITE)
    for second in range(1, 30):
        pair[0].sendall(b"x")
        pair[1].recv(1)
        until_acknowledged(pair[0])
        watch.check(watch.since + second)
    assert watch.reason is None


def until_acknowledged(connection: socket.socket) -> None:
    done = threading.Event()
    for _ in range(1000):
        if not _unsent(connection):
            return
        done.wait(0.001)
    raise AssertionError("what was sent does not arrive")


@pytest.mark.parametrize("send", [5.0, 0.0])
def test_a_client_that_takes_not_even_the_last_words_is_shut_down(pair: Pair, send: float) -> None:
    """The first reason stays; but whoever was blocked in telling it stayed blocked for ever."""
    watch = watched(pair[0], send=send)
    watch.enter(Stage.WRITE)
    watch.cut(EndReason.MAX_DURATION)
    watch.check(watch.since + 0.1)
    watch.check(watch.since + 0.2 + LAST_WORDS)
    assert watch.reason is EndReason.MAX_DURATION
    assert pair[1].recv(1) == b""


def test_the_first_reason_stays(pair: Pair) -> None:
    watch = watched(pair[0])
    watch.cut(EndReason.IDLE_TIMEOUT)
    watch.cut(EndReason.CLIENT_GONE)
    assert watch.reason is EndReason.IDLE_TIMEOUT


def test_a_client_can_still_be_told_of_a_silent_upstream(pair: Pair) -> None:
    watch = watched(pair[0])
    watch.enter(Stage.READ)
    watch.cut(EndReason.IDLE_TIMEOUT)
    pair[0].sendall(b"event: error")
    assert pair[1].recv(12) == b"event: error"


def test_cutting_shuts_the_upstream_down(pair: Pair) -> None:
    watch = watched()
    watch.attach(pair[0])
    watch.cut(EndReason.CLIENT_GONE)
    assert pair[1].recv(1) == b""


def test_a_connection_that_was_given_away_is_not_shut_down(pair: Pair) -> None:
    """It is in its pool, and carries somebody else's answer in the next moment."""
    watch = watched()
    watch.attach(pair[0])
    watch.detach()
    watch.cut(EndReason.CLIENT_GONE)
    pair[0].sendall(b"somebody else's")
    assert pair[1].recv(15) == b"somebody else's"


def test_nothing_is_opened_for_an_exchange_that_was_cut(pair: Pair) -> None:
    watch = watched()
    watch.cut(EndReason.CLIENT_GONE)
    with pytest.raises(ConnectionAbortedError):
        watch.attach(pair[0])


def test_a_client_is_polled_where_nothing_else_tells(pair: Pair) -> None:
    watch = watched(pair[0])
    watch.watch_client()
    watch.check(0)
    assert watch.reason is None
    pair[1].close()
    until_gone(pair[0])
    watch.check(0)
    assert watch.reason is EndReason.CLIENT_GONE


def test_the_sweep_cuts_without_being_asked(pair: Pair) -> None:
    watches = Watches(Drain())
    watch = watched(idle=0.01)
    watch.enter(Stage.READ)
    watch.attach(pair[0])
    watches.add(watch)
    assert pair[1].recv(1) == b""
    assert watch.reason is EndReason.IDLE_TIMEOUT
    assert len(watches) == 1
    watches.discard(watch)
    watches.discard(watch)
    assert len(watches) == 0


def test_a_closed_watch_is_left_alone() -> None:
    watches = Watches(Drain())
    first, second = watched(idle=0.01), watched(idle=0.01)
    for watch in (first, second):
        watch.enter(Stage.READ)
        watches.add(watch)
    watches.discard(first)
    assert threading.Event().wait(3 * SWEEP_INTERVAL) is False
    assert (first.reason, second.reason) == (None, EndReason.IDLE_TIMEOUT)
    watches.discard(second)


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
    reset_on_close(pair[0], patience=PATIENCE)
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
    reset_on_close(pair[0], patience=0.05)
    pair[0].close()
    with pytest.raises(ConnectionResetError):
        while pair[1].recv(1 << 20):
            pass


def streaming(pair: Pair, fed: bytes) -> Watch:
    """A stream that waits for its upstream's next bytes."""
    watch = watched()
    watch.boundary = Boundary()
    watch.boundary.feed(fed)
    watch.enter(Stage.READ)
    watch.attach(pair[0])
    return watch


@pytest.mark.parametrize(
    ("fed", "phase", "is_cut"),
    [
        pytest.param(b"data: a\n\n", Phase.ENDING, True, id="between events"),
        pytest.param(b"", Phase.ENDING, True, id="before the first"),
        pytest.param(b"data: a", Phase.ENDING, False, id="inside one"),
        pytest.param(b"data: a", Phase.OVER, True, id="inside one, too long"),
        pytest.param(b"data: a\n\n", Phase.OVER, True, id="between events, late"),
    ],
)
def test_a_stopping_process_cuts_a_silent_stream_between_events(
    pair: Pair, fed: bytes, phase: Phase, is_cut: bool
) -> None:
    watch = streaming(pair, fed)
    watch.drain(phase)
    assert watch.reason is (EndReason.DRAINING if is_cut else None)
    assert watch.is_ending is (phase is Phase.ENDING)
    if is_cut:
        assert pair[1].recv(1) == b""


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.READ])
def test_what_is_no_stream_yet_or_being_sent_is_cut_last(pair: Pair, stage: Stage) -> None:
    watch = streaming(pair, b"data: a\n\n")
    watch.enter(stage)
    watch.drain(Phase.ENDING)
    assert watch.reason is None
    watch.drain(Phase.OVER)
    assert watch.reason is EndReason.DRAINING


def test_a_client_that_takes_no_last_words_is_left(pair: Pair) -> None:
    ours, peer = pair
    watch = Watch(ours, Limits())
    watch.enter(Stage.WRITE)
    watch.drain(Phase.OVER)
    assert not is_gone(peer)
    watch.drain(Phase.LATE)
    assert peer.recv(1) == b""


def test_the_sweep_ends_streams_with_the_process(pair: Pair) -> None:
    drain = Drain()
    drain.begin_when(lambda: True, grace=1)
    watches = Watches(drain)
    watch = streaming(pair, b"data: a\n\n")
    watches.add(watch)
    assert pair[1].recv(1) == b""
    assert watch.reason is EndReason.DRAINING
    watches.discard(watch)
