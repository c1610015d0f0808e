"""`sse.testing`, as a site's own tests use it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient

from sse import SSE, EventSourceResponse, ServerSentEvent
from sse.testing import captured_events, parse_events, read_events

sse = SSE()


@pytest.fixture(params=[0, 15], ids=["no-heartbeat", "heartbeat"])
def client(request: pytest.FixtureRequest) -> FlaskClient:
    app = Flask(__name__)
    app.config["SSE_HEARTBEAT"] = request.param
    sse.init_app(app)

    @app.get("/endless")
    def endless() -> Response:
        return EventSourceResponse(map(str, itertools.count()))

    @app.get("/silent")
    def silent() -> Response:
        def events() -> Iterator[str]:
            yield "one"
            time.sleep(0.5)
            yield "two"

        return EventSourceResponse(events())

    @app.get("/channel")
    def channel() -> Response:
        return sse.subscribe("a", replay=9)

    @app.get("/plain")
    def plain() -> Response:
        return Response("data: x\n\n", mimetype="text/event-stream")

    return app.test_client()


def test_events_are_parsed_in_any_pieces() -> None:
    data = b"\xef\xbb\xbf: hello\r\nid: 1\r\n\r\nevent: news\rdata: a\rdata: b\r\rid\ndata\n\ndata: cut"
    expected = [ServerSentEvent(data="a\nb", event="news", id="1"), ServerSentEvent(data="")]
    assert parse_events(data) == expected
    assert parse_events(data.decode("utf-8")) == expected
    assert parse_events(data[at : at + 1] for at in range(len(data))) == expected


def test_an_endless_stream_does_not_hang(client: FlaskClient) -> None:
    assert [event.data for event in read_events(client.get("/endless"), limit=3)] == ["0", "1", "2"]


def test_a_stream_that_ends_is_read_to_its_end(client: FlaskClient) -> None:
    assert [event.data for event in read_events(client.get("/silent"))] == ["one", "two"]
    assert [event.data for event in read_events(client.get("/plain"))] == ["x"]


def test_a_silent_stream_is_a_failure_that_shows_what_came(client: FlaskClient) -> None:
    with client.application.app_context():
        sse.publish("a", "hello")
    with pytest.raises(TimeoutError, match="hello"):
        read_events(client.get("/channel"), limit=2, timeout=0.2)
    assert client.application.extensions["sse"].channels.info("a").readers == 0


def test_what_is_published_is_captured(client: FlaskClient) -> None:
    app = client.application
    with app.app_context(), captured_events(app) as events:
        sse.publish("a", {"n": 1}, event="created")
    with app.app_context():
        sse.publish("a", "later")
    (found,) = events
    assert (found.channel, found.event) == ("a", ServerSentEvent(data='{"n": 1}', event="created"))
    assert found.id.endswith("-1")
