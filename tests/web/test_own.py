"""`EventSourceResponse` and `last_event_id`, in Flask's test client."""

from __future__ import annotations

import datetime
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flask
import pytest
from flask import Flask, Response, request, stream_with_context
from flask.testing import FlaskClient

from sse import SSE, EventSourceResponse, ServerSentEvent, last_event_id
from sse.relay.stream import producer

PATIENCE = 10.0

#: Any way to stream: in a thread of its own, and in the server's.
HEARTBEATS = [pytest.param(15, id="heartbeat"), pytest.param(0, id="no-heartbeat")]


def client_of(view: Callable[[], Any], **settings: Any) -> FlaskClient:
    """Return a client of an app with that view at `/`."""
    app = Flask(__name__)
    app.config.from_mapping({f"SSE_{key}": value for key, value in settings.items()})
    SSE(app, relay=False)
    app.add_url_rule("/", view_func=view)
    app.config["TESTING"] = True
    return app.test_client()


@dataclass
class Point:
    x: int
    y: int


def stream(*items: Any, **options: Any) -> Callable[[], EventSourceResponse]:
    return lambda: EventSourceResponse(iter(items), **options)


@pytest.fixture(params=HEARTBEATS)
def heartbeat(request: pytest.FixtureRequest) -> float:
    value: float = request.param
    return value


@pytest.mark.parametrize(
    ("item", "sent"),
    [
        pytest.param(ServerSentEvent(event="a", retry=5, data="b"), "event: a\nretry: 5\ndata: b", id="event"),
        pytest.param(ServerSentEvent(id="1"), "id: 1", id="event-without-data"),
        pytest.param("a\r\nb\rc\nd", "data: a\ndata: b\ndata: c\ndata: d", id="text-of-lines"),
        pytest.param("", "data: ", id="empty-text"),
        pytest.param("a\u2028b", "data: a\u2028b", id="text-with-other-separators"),
        pytest.param({"b": [1, None], "a": "x"}, 'data: {"a": "x", "b": [1, null]}', id="dict"),
        pytest.param([], "data: []", id="empty-list"),
        pytest.param([datetime.date(2026, 1, 2)], 'data: ["Fri, 02 Jan 2026 00:00:00 GMT"]', id="the-app-s-json"),
        pytest.param(b": a\n\nid: 1\r\ndata: b\n\n", ": a\n\nid: 1\r\ndata: b", id="framed-bytes"),
        pytest.param(1, "data: 1", id="number"),
        pytest.param(None, "data: null", id="null"),
        pytest.param(("a", 1), 'data: ["a", 1]', id="tuple"),
        pytest.param(uuid.UUID(int=7), 'data: "00000000-0000-0000-0000-000000000007"', id="uuid"),
        pytest.param(Point(1, 2), 'data: {"x": 1, "y": 2}', id="dataclass"),
    ],
)
def test_an_item_becomes_an_event(item: Any, sent: str, heartbeat: float) -> None:
    response = client_of(stream(item), HEARTBEAT=heartbeat).get("/")
    assert response.get_data(as_text=True) == f"{sent}\n\n"


@pytest.mark.parametrize(
    "item", [b"bytes", b"", b"data: a\r\n", {1}, {"a": object()}], ids=["bytes", "empty", "part", "set", "not-json"]
)
def test_what_is_no_event_is_refused(item: Any, heartbeat: float) -> None:
    with pytest.raises(TypeError):
        _ = client_of(stream("a", item), HEARTBEAT=heartbeat).get("/").data


async def asynchronous() -> AsyncIterator[str]:
    yield "a"


def generator() -> Iterator[str]:
    yield "a"


@pytest.mark.parametrize(
    ("events", "hint"),
    [
        pytest.param(generator, "call it", id="function"),
        pytest.param(asynchronous(), "WSGI", id="async-generator"),
        pytest.param("text", "list", id="text"),
        pytest.param(b"bytes", "list", id="bytes"),
        pytest.param({"a": 1}, "list", id="dict"),
        pytest.param(ServerSentEvent(data="a"), "list", id="event"),
        pytest.param(None, "iterable", id="none"),
        pytest.param("data: a\n\n", "list", id="framed-text"),
        pytest.param(["a", "data: a\n\n"], "data alone", id="framed-item"),
        pytest.param(["id: 1\r\ndata: a\r\n\r\n"], "data alone", id="framed-item-of-lines"),
        pytest.param(["a", b"bytes"], "whole events", id="bytes-item"),
        pytest.param(["a", object()], "not JSON serializable", id="not-json-item"),
    ],
)
def test_a_non_iterable_is_refused_before_the_response(events: Any, hint: str) -> None:
    """The error came after the 200 before, or not at all: a str is an iterable of letters."""

    def view() -> str:
        with pytest.raises(TypeError, match=hint):
            EventSourceResponse(events)
        return "refused"

    assert client_of(view).get("/").text == "refused"


@pytest.mark.parametrize("first", ["data: a\n\n", ": ping\n\n", "event: a\ndata: b\n\n", "retry: 5\r\r"])
def test_framed_text_from_a_generator_is_refused_at_once(first: str, heartbeat: float) -> None:
    with pytest.raises(TypeError, match="data alone"):
        _ = client_of(stream(first), HEARTBEAT=heartbeat).get("/").data


@pytest.mark.parametrize("text", ["data: a", "data: a\n", "date: a\n\n", " data: a\n\n", "a\n\n"])
def test_text_that_is_like_an_event_but_none_is_sent(text: str, heartbeat: float) -> None:
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    assert client_of(stream(text), HEARTBEAT=heartbeat).get("/").text == f"{lines}\n"


def test_later_text_may_be_anything(heartbeat: float) -> None:
    """It may be other people's, and is not to end a stream."""
    response = client_of(stream("a", "data: a\n\n"), HEARTBEAT=heartbeat).get("/")
    assert response.text == "data: a\n\ndata: data: a\ndata: \ndata: \n\n"


def runs_in(options: dict[str, Any], **settings: Any) -> str:
    """Return where the iterable of a stream runs."""
    view_thread = threading.current_thread()
    threads: list[threading.Thread] = []

    def view() -> Response:
        def events() -> Iterator[str]:
            threads.append(threading.current_thread())
            yield "a"

        return EventSourceResponse(events(), **options)

    assert client_of(view, **settings).get("/").text == "data: a\n\n"
    return "view's thread" if threads == [view_thread] else "own thread"


@pytest.mark.parametrize(
    ("options", "setting", "place"),
    [
        ({}, 15, "own thread"),
        ({}, 0, "view's thread"),
        ({"heartbeat": 0}, 15, "view's thread"),
        ({"heartbeat": 15}, 0, "own thread"),
    ],
)
def test_an_iterable_has_a_thread_only_for_a_heartbeat(options: dict[str, Any], setting: float, place: str) -> None:
    """sqlite3 and thread-locals work in the thread of the view alone."""
    assert runs_in(options, HEARTBEAT=setting) == place


def test_a_list_needs_no_thread() -> None:
    before = set(threading.enumerate())
    client = client_of(lambda: EventSourceResponse(["a"]))
    pieces = client.get("/").iter_encoded()
    assert [next(pieces), next(pieces)] == [b"", b"data: a\n\n"]
    assert "sse-producer" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_negative_heartbeat_is_refused() -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        client_of(stream("a", heartbeat=-1)).get("/")


def test_the_threads_of_silent_iterables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can interrupt a thread that waits, so each client that left took one for good."""
    monkeypatch.setattr(producer, "_threads", threading.BoundedSemaphore(1))
    may_end = threading.Event()

    def waiting() -> Iterator[str]:
        yield "a"
        may_end.wait(PATIENCE)

    client = client_of(lambda: EventSourceResponse(waiting()), HEARTBEAT=0.01)
    response = client.get("/")
    pieces = response.iter_encoded()
    assert [next(pieces), next(pieces), next(pieces)] == [b"", b"data: a\n\n", b":\n"]
    response.close()
    # The client has left, the thread waits on.
    assert runs_in({}) == "view's thread"
    may_end.set()
    while runs_in({}) != "own thread":
        assert may_end.wait(0.01)


def test_what_the_iterable_raises_reaches_the_test(heartbeat: float) -> None:
    def view() -> Response:
        def events() -> Iterator[str]:
            yield "a"
            raise LookupError("of the iterable")

        return EventSourceResponse(events())

    with pytest.raises(LookupError, match="of the iterable"):
        _ = client_of(view, HEARTBEAT=heartbeat).get("/").data


def test_the_fields_are_those_of_an_event_stream() -> None:
    response = client_of(stream()).get("/", headers={"X-Request-Id": "abc"})
    assert response.status_code == 200
    assert dict(response.headers) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "X-Request-Id": "abc",
    }


def test_status_and_fields_may_be_given_but_not_the_type() -> None:
    fields = {"cache-control": "no-store", "X-Other": "1", "content-type": "text/plain"}
    response = client_of(stream(status=203, headers=fields)).get("/")
    assert response.status_code == 203
    assert response.headers.getlist("Cache-Control") == ["no-store"]
    assert response.headers["X-Other"] == "1"
    assert response.headers.getlist("Content-Type") == ["text/event-stream; charset=utf-8"]


def test_status_204_sends_the_head_alone_and_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse")
    with client_of(stream("never", status=204)).get("/") as response:
        assert response.status_code == 204
        assert response.data == b""
    assert "stream end=complete status=204" in caplog.text


def test_nothing_may_read_the_whole_stream_in_passing() -> None:
    def view() -> str:
        response = EventSourceResponse(["a"])
        with pytest.raises(RuntimeError):
            response.get_data()
        return "seen"

    assert client_of(view).get("/").text == "seen"


def test_what_the_view_wants_closed_is_closed_with_the_stream() -> None:
    closed: list[str] = []

    def view() -> Response:
        response = EventSourceResponse(["a"])
        response.call_on_close(lambda: closed.append("view"))
        return response

    with client_of(view).get("/") as response:
        assert response.data == b"data: a\n\n"
    assert closed == ["view"]


def test_a_head_request_closes_the_iterable_unstarted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse")

    class Events:
        started = closed = False

        def __iter__(self) -> Iterator[str]:
            Events.started = True
            yield "a"

        def close(self) -> None:
            Events.closed = True

    client_of(lambda: EventSourceResponse(Events())).head("/").close()
    assert (Events.started, Events.closed) == (False, True)
    assert "stream end=complete" in caplog.text


def test_a_stream_that_is_left_is_closed_and_says_so_once(heartbeat: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse")
    closed = threading.Event()

    def view() -> Response:
        def events() -> Iterator[str]:
            try:
                while True:
                    yield "a"
            finally:
                closed.set()

        return EventSourceResponse(events())

    response = client_of(view, HEARTBEAT=heartbeat).get("/")
    pieces = response.iter_encoded()
    assert [next(pieces), next(pieces)] == [b"", b"data: a\n\n"]
    response.close()
    assert closed.wait(PATIENCE)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["end=client_gone"]


def test_what_the_close_of_the_iterable_raises_leaves_no_watch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse")

    def view() -> Response:
        def events() -> Iterator[str]:
            try:
                while True:
                    yield "a"
            finally:
                raise LookupError("of the close")

        return EventSourceResponse(events())

    client = client_of(view, HEARTBEAT=0)
    response = client.get("/")
    assert next(pieces := response.iter_encoded()) == b""
    assert next(pieces) == b"data: a\n\n"
    with pytest.raises(LookupError, match="of the close"):
        response.close()
    assert len(client.application.extensions["sse"].monitor) == 0
    assert "stream end=client_gone" in caplog.text


def test_no_watch_is_left_when_streams_have_ended(heartbeat: float) -> None:
    client = client_of(stream("a"), HEARTBEAT=heartbeat)
    with client.get("/") as response:
        assert response.data == b"data: a\n\n"
    client.get("/").close()
    client.head("/").close()
    assert len(client.application.extensions["sse"].monitor) == 0


def test_a_response_that_is_never_sent_leaves_nothing() -> None:
    def view() -> str:
        EventSourceResponse(["a"])
        return "something else"

    client = client_of(view)
    before = threading.active_count()
    assert client.get("/").text == "something else"
    assert len(client.application.extensions["sse"].monitor) == 0
    assert threading.active_count() == before


def test_the_iterable_uses_the_request_with_stream_with_context(heartbeat: float) -> None:
    def view() -> Response:
        flask.g.word = "of g"

        def events() -> Iterator[Any]:
            yield request.args["q"]
            yield flask.g.word

        return EventSourceResponse(stream_with_context(events()))

    client = client_of(view, HEARTBEAT=heartbeat)
    assert client.get("/?q=asked").text == "data: asked\n\ndata: of g\n\n"


def test_without_it_the_request_is_out_of_reach(heartbeat: float) -> None:
    def view() -> Response:
        return EventSourceResponse(request.args["q"] for _ in range(1))

    with pytest.raises(RuntimeError, match="request context"):
        _ = client_of(view, HEARTBEAT=heartbeat).get("/?q=asked").data


def test_an_app_without_sse_gets_an_error() -> None:
    app = Flask(__name__)
    with app.test_request_context(), pytest.raises(RuntimeError, match="has no SSE"):
        EventSourceResponse([])


@pytest.mark.parametrize(
    ("field", "query", "seen"),
    [
        pytest.param(None, {}, "", id="none"),
        pytest.param("41", {}, "41", id="field"),
        pytest.param(None, {"lastEventId": "41"}, "41", id="query"),
        pytest.param("42", {"lastEventId": "41"}, "42", id="field-before-query"),
        pytest.param("", {"lastEventId": "41"}, "41", id="empty-field"),
        pytest.param("ü中".encode().decode("latin-1"), {}, "ü中", id="field-in-utf-8"),
        pytest.param("ü", {}, "\ufffd", id="field-not-in-utf-8"),
        pytest.param(None, {"lastEventId": "ü中"}, "ü中", id="query-in-utf-8"),
    ],
)
def test_the_last_event_id_is_what_the_client_has_seen(field: str | None, query: dict[str, str], seen: str) -> None:
    headers = {} if field is None else {"Last-Event-ID": field}
    with Flask(__name__).test_request_context(headers=headers, query_string=query):
        assert last_event_id() == seen
