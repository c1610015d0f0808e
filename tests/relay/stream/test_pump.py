"""What a stream's end looks like to the client, and what is said of it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from sse.relay.exchange import STOPPED, Exchange, Limits, Stage
from sse.relay.stream.end import Abort, EndReason, StreamAborted, StreamEnd
from sse.relay.stream.pump import ERROR_EVENT_DELAY, MAX_HELD, WAIT, End, Pause, Pump, encode_error
from sse.relay.stream.source import TruncatedBody

from ...support.ending import LAST_WORDS

EVENT = b"data: a\n\n"

#: Seconds of silence before a heartbeat, here.
HEARTBEAT = 0.01

Item = bytes | Exception | EndReason | Callable[[Exchange], object]


class FakeSource:
    """A source that follows a script: give bytes, be silent (b""), raise, be cancelled, or change the exchange."""

    def __init__(self, exchange: Exchange, *script: Item) -> None:
        self._exchange = exchange
        self._script = iter(script)
        self._is_silent = False
        #: How often the next reads give nothing.
        self._nothing = 0
        self.closed = 0
        self.timeouts: list[float | None] = []

    def read(self) -> bytes | None:
        if self._nothing:
            self._nothing -= 1
            return None
        for item in self._script:
            if callable(item):
                item(self._exchange)
                continue
            if isinstance(item, EndReason):
                if item is EndReason.CLIENT_GONE:
                    self._exchange.lose_client(item)
                self._exchange.cancel(item)
                raise TruncatedBody
            if isinstance(item, Exception):
                raise item
            self._is_silent = not item
            return item or None
        return b""

    def wait(self, timeout: float | None) -> None:
        if self._is_silent:
            self.timeouts.append(timeout)
            time.sleep(timeout or 0)
            self._is_silent, self._nothing = False, 1

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        return None

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


class Stream:
    """A pump and what it said."""

    def __init__(self, *script: Item, client: socket.socket | None = None, **options: Any) -> None:
        self.exchange = Exchange(client, Limits())
        self.source = FakeSource(self.exchange, *script)
        self.ends: list[StreamEnd] = []
        given = {"is_event_stream": True, "status": 200, **options}
        self.pump = Pump(self.source, self.exchange, on_end=self.ends.append, **given)
        self.sent: list[bytes] = []

    def serve(self) -> None:
        """Do what a server does."""
        try:
            for piece in self.pump:
                self.sent.append(piece)
        finally:
            self.pump.close()

    @property
    def reason(self) -> EndReason:
        assert len(self.ends) == 1, "one end"
        assert self.source.closed
        return self.ends[0].reason


def test_the_first_item_is_empty_so_that_the_head_goes_out() -> None:
    stream = Stream(EVENT)
    stream.serve()
    assert stream.sent == [b"", EVENT]


def test_a_whole_stream_is_complete() -> None:
    stream = Stream(EVENT, b"data: b", b"\n\n")
    stream.serve()
    assert stream.reason is EndReason.COMPLETE
    assert (stream.ends[0].events, stream.ends[0].bytes, stream.ends[0].status) == (2, 18, 200)
    assert stream.ends[0].first_byte is not None


@pytest.mark.parametrize(
    "reason",
    [EndReason.IDLE_TIMEOUT, EndReason.MAX_DURATION, EndReason.DRAINING, EndReason.UPSTREAM_TRUNCATED],
)
@pytest.mark.parametrize(
    ("pieces", "is_boundary"),
    [
        pytest.param([], True, id="nothing"),
        pytest.param([EVENT], True, id="event"),
        pytest.param([b"data: a\r\n\r\n"], True, id="crlf"),
        pytest.param([b"data: a\r", b"\r"], True, id="cr"),
        pytest.param([b"data: a"], False, id="line"),
        pytest.param([b"data: a\n"], False, id="no blank line"),
        pytest.param([b":\n"], False, id="comment"),
        pytest.param([b"\xef\xbb"], False, id="half a byte order mark"),
    ],
)
def test_an_error_event_stands_only_where_an_event_has_ended(
    pieces: list[bytes], is_boundary: bool, reason: EndReason
) -> None:
    stream = Stream(*pieces, TruncatedBody() if reason is EndReason.UPSTREAM_TRUNCATED else reason)
    with pytest.raises(StreamAborted):
        stream.serve()
    sent = re.sub(rb"retry: \d+\n", b"", b"".join(stream.sent))
    words = re.sub(rb"retry: \d+\n", b"", encode_error(reason)) if is_boundary else b""
    assert sent == b"".join(pieces) + words
    assert stream.reason is reason


def test_an_error_event_names_the_reason() -> None:
    assert encode_error(EndReason.IDLE_TIMEOUT) == (
        b'event: error\ndata: {"code": "idle_timeout", "error": {"message": "the upstream sent nothing for too long", '
        b'"type": "api_error", "code": "idle_timeout", "param": null}}\n\n'
    )


@pytest.mark.parametrize("item", [TruncatedBody(), EndReason.IDLE_TIMEOUT])
def test_what_is_no_event_stream_is_only_aborted(item: Exception | EndReason) -> None:
    stream = Stream(b"{}\n\n", item, is_event_stream=False)
    with pytest.raises(StreamAborted):
        stream.serve()
    assert stream.sent == [b"", b"{}\n\n"]


def test_a_client_that_left_is_sent_nothing() -> None:
    stream = Stream(EVENT, EndReason.CLIENT_GONE)
    with pytest.raises(StreamAborted):
        stream.serve()
    assert stream.sent == [b"", EVENT]
    assert stream.reason is EndReason.CLIENT_GONE


def test_an_abort_is_a_connection_error_to_the_server() -> None:
    """The one kind of exception on which servers close at once and log nothing."""
    assert isinstance(StreamAborted(EndReason.IDLE_TIMEOUT), ConnectionResetError | ConnectionError)


def test_a_fault_of_ours_is_an_internal_error_and_not_swallowed() -> None:
    stream = Stream(EVENT, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        stream.serve()
    assert stream.reason is EndReason.INTERNAL_ERROR


def test_a_foreign_oserror_is_not_taken_for_the_upstreams() -> None:
    stream = Stream(EVENT, OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        stream.serve()
    assert stream.reason is EndReason.INTERNAL_ERROR


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_body_that_is_closed_early_was_left_by_its_client(count: int) -> None:
    stream = Stream(EVENT, EVENT, EVENT)
    pieces = iter(stream.pump)
    for _ in range(count):
        next(pieces)
    stream.pump.close()
    stream.pump.close()
    assert stream.reason is EndReason.CLIENT_GONE


def test_a_cancelled_body_ends_for_the_reason_of_the_cancel() -> None:
    stream = Stream(EVENT, EVENT)
    pieces = iter(stream.pump)
    next(pieces)
    stream.exchange.lose_client(EndReason.SEND_TIMEOUT)
    stream.pump.close()
    assert stream.reason is EndReason.SEND_TIMEOUT


def test_a_head_alone_is_complete() -> None:
    stream = Stream(EVENT, has_body=False)
    stream.pump.close()
    assert stream.reason is EndReason.COMPLETE


def test_the_end_is_reported_after_the_last_chunk() -> None:
    """A client that does not take it would not be noticed any more."""
    stream = Stream(EVENT)
    list(stream.pump)
    assert stream.source.closed
    assert not stream.ends
    assert stream.exchange.client.stage is Stage.WRITE
    assert stream.exchange.client.since != STOPPED
    stream.pump.close()
    assert stream.reason is EndReason.COMPLETE


def test_heartbeats_stand_between_events() -> None:
    stream = Stream(b"", EVENT, b"", b"", b"data: b", b"", b"\n", b"", b"\n", b"", heartbeat=HEARTBEAT)
    stream.serve()
    assert all(timeout is not None and 0 < timeout <= HEARTBEAT for timeout in stream.source.timeouts)
    assert stream.sent == [b"", b":\n", EVENT, b":\n", b":\n", b"data: b", b"\n", b"\n", b":\n"]
    assert stream.ends[0].bytes == 2 * len(EVENT)


def test_there_are_no_heartbeats_in_what_is_no_event_stream() -> None:
    stream = Stream(b"{}\n\n", b"", is_event_stream=False, heartbeat=HEARTBEAT)
    stream.serve()
    assert stream.source.timeouts == [None]


def test_a_heartbeat_is_no_sign_of_life() -> None:
    """Heartbeats every 15 s would have kept a dead upstream open for ever."""
    seen: list[float] = []
    stream = Stream(
        EVENT,
        lambda exchange: setattr(exchange.upstream, "since", 42.0),
        b"",
        b"",
        lambda exchange: seen.append(exchange.upstream.since),
        EVENT,
        lambda exchange: seen.append(exchange.upstream.since),
        heartbeat=HEARTBEAT,
    )
    stream.serve()
    assert stream.sent == [b"", EVENT, b":\n", b":\n", EVENT]
    assert seen[0] == 42.0
    assert seen[1] > 42.0


@pytest.mark.parametrize("cut", [[b"x" * 100], [b"x" * 60, b"x" * 40], [b"x"] * 100])
def test_what_is_beyond_the_limit_is_truncated_visibly(cut: list[bytes]) -> None:
    stream = Stream(*cut, is_event_stream=False, limit=70)
    with pytest.raises(StreamAborted):
        stream.serve()
    assert b"".join(stream.sent) == b"x" * 70
    assert stream.reason is EndReason.UPSTREAM_TRUNCATED


def test_a_body_as_long_as_the_limit_is_complete() -> None:
    stream = Stream(b"x" * 30, b"x" * 40, is_event_stream=False, limit=70)
    stream.serve()
    assert b"".join(stream.sent) == b"x" * 70
    assert stream.reason is EndReason.COMPLETE


@pytest.mark.parametrize(("abort", "ending"), [(Abort.CLOSE, b""), (Abort.RESET, None)])
def test_the_client_is_shown_that_a_response_is_not_whole(abort: Abort, ending: bytes | None) -> None:
    """To an HTTP/1.0 client the end of the connection is the end of the body; servers may end it with a FIN."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        client, _ = listener.accept()
    with peer:
        stream = Stream(EVENT, TruncatedBody(), client=client, abort=abort)
        # Nothing is raised: what wraps the app would report it.
        stream.serve()
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        client.close()
        try:
            got: bytes | None = peer.recv(1)
        except ConnectionResetError:
            got = None
        assert got == ending


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_what_follows_the_last_whole_event_is_held_back(size: int, line_end: bytes) -> None:
    first, second = (b"data: %b" % letter + 2 * line_end for letter in (b"a", b"b"))
    data = first + second + b"data: half" + line_end
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    stream = Stream(*pieces, TruncatedBody(), holds_back=True)
    with pytest.raises(StreamAborted):
        stream.serve()
    # A CR may be half of a line end: what it ends goes out with the byte behind it, at the latest.
    assert b"".join(stream.sent).removesuffix(encode_error(EndReason.UPSTREAM_TRUNCATED)) == first + second


def test_what_is_held_back_is_sent_when_the_stream_is_whole() -> None:
    stream = Stream(EVENT, b"data: unfi", b"nished", holds_back=True)
    stream.serve()
    assert b"".join(stream.sent) == EVENT + b"data: unfinished"
    assert stream.reason is EndReason.COMPLETE


def test_the_end_is_read_behind_what_is_held_back() -> None:
    """An upstream that sent its last bytes and the end at once was waited for until the idle timeout."""
    stream = Stream(EVENT, b"data: [DONE]\n", holds_back=True)
    assert stream.pump.step() == EVENT
    assert stream.pump.step() == b"data: [DONE]\n"
    assert stream.pump.step() == End(None)


def test_an_event_that_is_too_long_is_not_held_back() -> None:
    stream = Stream(b"data: " + b"x" * MAX_HELD, AssertionError("sent before"), holds_back=True)
    with pytest.raises(AssertionError):
        stream.serve()
    assert len(b"".join(stream.sent)) == len(b"data: ") + MAX_HELD


def end_soon(exchange: Exchange) -> None:
    exchange.ends_at_boundary = True


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("cut", range(len(b"data: b\r\n\r\n")))
def test_a_draining_stream_completes_the_event_that_has_begun(line_end: bytes, cut: int) -> None:
    first, second, third = (b"data: %b" % letter + 2 * line_end for letter in (b"a", b"b", b"c"))
    stream = Stream(first + second[:cut], end_soon, second[cut:] + third, third)
    with pytest.raises(StreamAborted):
        stream.serve()
    *relayed, words = stream.sent
    assert b"".join(relayed) == first + second + (third if cut >= len(second) else b"")
    assert stream.reason is EndReason.DRAINING
    assert LAST_WORDS.fullmatch(words)


def test_draining_spreads_the_reconnection_times() -> None:
    words = {encode_error(EndReason.DRAINING) for _ in range(50)}
    assert len(words) > 10
    assert all(b"retry:" not in encode_error(reason) for reason in EndReason if reason is not EndReason.DRAINING)


def test_a_response_that_is_no_event_stream_is_not_ended_early() -> None:
    stream = Stream(b"{", end_soon, b'"a": "\n\n"', b"}", is_event_stream=False)
    stream.serve()
    assert stream.sent == [b"", b"{", b'"a": "\n\n"', b"}"]
    assert stream.reason is EndReason.COMPLETE


def advance(seconds: float) -> Callable[[Exchange], None]:
    """Let the wait that goes on have begun so much earlier."""

    def step(exchange: Exchange) -> None:
        exchange.upstream.since -= seconds

    return step


@pytest.mark.parametrize(
    ("script", "gap"),
    [
        pytest.param([advance(100), EVENT, advance(5), EVENT, advance(7), EVENT, advance(6), EVENT], 7, id="longest"),
        pytest.param([EVENT, advance(5), EVENT, advance(100)], 5, id="not-the-wait-for-the-end"),
        pytest.param([EVENT, advance(5), b"", b"", advance(2), EVENT], 7, id="across-heartbeats"),
        pytest.param([advance(100), b"", EVENT, advance(1), EVENT], 1, id="not-the-heartbeat-before-the-first"),
        pytest.param([EVENT, advance(100), b""], None, id="not-up-to-a-heartbeat"),
        pytest.param([advance(100), EVENT], None, id="one-piece"),
        pytest.param([advance(100)], None, id="none"),
    ],
)
def test_the_longest_gap_is_the_longest_wait_between_two_pieces(script: list[Item], gap: float | None) -> None:
    stream = Stream(*script, heartbeat=HEARTBEAT)
    stream.serve()
    found = stream.ends[0].longest_gap
    assert found is None if gap is None else found is not None and gap <= found < gap + 0.9


def test_a_client_that_is_slow_makes_no_gap() -> None:
    stream = Stream(EVENT, advance(1), EVENT)
    pieces = iter(stream.pump)
    for _ in range(2):
        next(pieces)
        # It takes its time here, in the middle of a write.
        stream.exchange.client.since -= 100
    assert next(pieces) == EVENT
    stream.pump.close()
    assert stream.ends[0].longest_gap is not None and stream.ends[0].longest_gap < 2


def test_a_step_returns_what_comes_next() -> None:
    stream = Stream(EVENT, b"", TruncatedBody())
    step, exchange = stream.pump.step, stream.exchange
    assert (step(), exchange.upstream.since) == (EVENT, STOPPED)
    assert (step(), exchange.upstream.since != STOPPED) == (WAIT, True)
    assert (step(), step()) == (encode_error(EndReason.UPSTREAM_TRUNCATED), Pause(ERROR_EVENT_DELAY))
    end = step()
    assert isinstance(end, End)
    assert isinstance(end.error, StreamAborted)


def test_a_step_never_waits_nor_closes() -> None:
    stream = Stream(EVENT, ZeroDivisionError())
    began = time.monotonic()
    while not isinstance(stream.pump.step(), End):
        pass
    assert time.monotonic() - began < ERROR_EVENT_DELAY
    assert not stream.source.closed
    assert not stream.ends


def test_while_the_client_is_waited_for_the_upstream_is_not() -> None:
    """A slow client's time counted for the upstream, which was cancelled for silence."""
    stream = Stream(EVENT, b"")
    assert stream.pump.step() == EVENT
    assert stream.pump.step() is WAIT
    with stream.pump.writing():
        assert stream.exchange.upstream.since == STOPPED
        assert stream.exchange.client.since != STOPPED
    assert stream.exchange.upstream.since != STOPPED
    assert stream.exchange.client.since == STOPPED


class Recorder:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.finished = 0

    def feed(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("last", [b"", TruncatedBody(), ZeroDivisionError()])
def test_a_tap_gets_what_the_source_gave_and_one_end(last: Item) -> None:
    tap = Recorder()
    stream = Stream(EVENT, b"", b"data: b", last, heartbeat=HEARTBEAT, taps=[tap])
    with suppress(StreamAborted, ZeroDivisionError):
        stream.serve()
    assert (tap.pieces, tap.finished) == ([EVENT, b"data: b"], 1)
