"""Helpers for the tests of a site: read event streams with Flask's test client, and see what is published."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask
from werkzeug.test import TestResponse

from .protocol.event import ServerSentEvent
from .protocol.parser import EventParser, ParsedEvent
from .signals import event_published, stream_ended, stream_opened


@dataclass(frozen=True, kw_only=True)
class PublishedEvent:
    """An event that was published to a channel."""

    channel: str
    event: ServerSentEvent
    id: str


def parse_events(data: bytes | str | Iterable[bytes]) -> list[ServerSentEvent]:
    """Return the events that a browser would dispatch for an event stream; an event that is cut off is none.

    The `id` of each is the last event ID that the browser has then, None if there was none.

    :param data: the stream, whole or in pieces.
    """
    pieces = [data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data
    parser = EventParser()
    return [_event(parsed) for piece in pieces for parsed in parser.feed(piece) if parsed.data is not None]


#: Seconds for a stream to end that its client has left; a busy machine takes some.
PATIENCE = 5.0


def _event(parsed: ParsedEvent) -> ServerSentEvent:
    type_ = None if parsed.type == "message" else parsed.type
    return ServerSentEvent(data=parsed.data, event=type_, id=parsed.last_event_id or None)


def read_events(response: TestResponse, *, limit: int | None = None, timeout: float = 5.0) -> list[ServerSentEvent]:
    """Read events of a response of `app.test_client()`, and close it; a stream without an end does not hang a test.

    :param limit: events after which the reading ends; None: as many as come.
    :param timeout: seconds for all of it.
    :raises TimeoutError: if there are neither so many events nor an end in time; the message shows what came.
    """
    deadline = time.monotonic() + timeout
    parser, found = EventParser(), list[ServerSentEvent]()
    pieces: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
    thread = threading.Thread(target=_read, args=(response, pieces), daemon=True)
    thread.start()
    try:
        while limit is None or len(found) < limit:
            piece = pieces.get(timeout=max(deadline - time.monotonic(), 0))
            if isinstance(piece, BaseException):
                raise piece
            if not piece:
                break
            found += [_event(parsed) for parsed in parser.feed(piece) if parsed.data is not None]
    except queue.Empty:
        raise TimeoutError(f"{len(found)} events and no end within {timeout} s: {found}") from None
    finally:
        _leave(response)
        thread.join(PATIENCE)
        # A generator that is being run cannot be closed; the thread of one that never ends dies with the tests.
        if not thread.is_alive():
            response.close()
    return found[:limit]


def _read(response: TestResponse, pieces: queue.SimpleQueue[bytes | BaseException]) -> None:
    try:
        for piece in response.iter_encoded():
            if piece:
                pieces.put(piece)
    except ConnectionError:
        # How an aborted response ends; what came before counts.
        pieces.put(b"")
    except Exception as error:
        pieces.put(error)
    else:
        pieces.put(b"")


def _leave(response: TestResponse) -> None:
    """Do what a client does that leaves: the stream then ends, also while it waits."""
    cancel = _open.get(response.headers.get("X-Request-Id", ""))
    if cancel is not None:
        cancel()


#: What cancels each open stream, by its request id.
_open: dict[str, Callable[[], None]] = {}


def _add(_: Flask, *, request_id: str, cancel: Callable[[], None], **__: object) -> None:
    _open[request_id] = cancel


def _discard(_: Flask, *, request_id: str, **__: object) -> None:
    _open.pop(request_id, None)


stream_opened.connect(_add)
stream_ended.connect(_discard)


@contextmanager
def captured_events(app: Flask) -> Iterator[list[PublishedEvent]]:
    """Return the events that an app publishes within the block."""
    found: list[PublishedEvent] = []

    def collect(_: Flask, *, channel: str, event: ServerSentEvent, id: str) -> None:
        found.append(PublishedEvent(channel=channel, event=event, id=id))

    with event_published.connected_to(collect, app):
        yield found
