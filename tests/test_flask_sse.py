"""Flask-SSE's quickstart, with only the import changed, and the rest of its interface."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, abort, request

from sse import ServerSentEvent
from sse.flask_sse import Message, ServerSentEventsBlueprint
from sse.testing import captured_events, parse_events, read_events

from .support.program import RedisServer
from .support.service import Process, RawClient, environment

#: The one of Flask-SSE's documentation, but for the address of Redis.
QUICKSTART = """
from flask import Flask, render_template
from sse.flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = "{url}"
app.register_blueprint(sse, url_prefix='/stream')

@app.route('/hello')
def publish_hello():
    sse.publish({{"message": "Hello!"}}, type='greeting')
    return "Message sent!"
"""


def test_the_quickstart_runs(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "quickstart.py").write_text(textwrap.dedent(QUICKSTART.format(url=redis_server.url)))
    command = [sys.executable, "-m", "gunicorn", "quickstart:app", "-k", "gevent", "-b", "127.0.0.1:0", "-w", "2"]
    env = {**environment({}, {}), "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    with Process([*command, "--no-control-socket"], env=env, cwd=tmp_path) as process:
        port = int(process.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        with RawClient("127.0.0.1", port) as reader, RawClient("127.0.0.1", port) as other:
            reader.request("GET", "/stream")
            assert reader.read_piece(), process.log()
            other.request("GET", "/hello")
            assert other.read_body() == b"Message sent!"
            reader.read_until(b'event: greeting\ndata: {"message": "Hello!"}\n\n')


@pytest.fixture
def sse() -> Iterator[ServerSentEventsBlueprint]:
    sse = ServerSentEventsBlueprint("sse", __name__)
    sse.add_url_rule(rule="", endpoint="stream", view_func=sse.stream)
    yield sse


def site(sse: ServerSentEventsBlueprint) -> Flask:
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    return app


def test_messages_go_to_the_channel_that_is_named(sse: ServerSentEventsBlueprint) -> None:
    app = site(sse)
    with app.app_context(), captured_events(app) as events:
        sse.publish({"a": 1})
        sse.publish("text", type="news", retry=5, channel="users.bob")
    assert [(found.channel, found.event) for found in events] == [
        ("sse", ServerSentEvent(data='{"a": 1}')),
        ("users.bob", ServerSentEvent(data="text", event="news", retry=5)),
    ]


def test_an_id_of_the_publishers_is_sent(sse: ServerSentEventsBlueprint) -> None:
    app = site(sse)
    client = app.test_client()
    response = client.get("/stream?channel=a")
    with app.app_context():
        sse.publish("x", id="mine", channel="a")
    (event,) = read_events(response, limit=1)
    assert event == ServerSentEvent(data="x", id="mine")
    response = client.get("/stream?channel=a", headers={"Last-Event-ID": "mine"})
    with app.app_context():
        sse.publish("y", channel="a")
    assert [event.data for event in read_events(response, limit=1)] == ["y"]


def test_before_request_can_refuse(sse: ServerSentEventsBlueprint, caplog: pytest.LogCaptureFixture) -> None:
    @sse.before_request
    def check_access() -> None:
        if request.args.get("channel") == "secret":
            abort(403)

    client = site(sse).test_client()
    assert client.get("/stream?channel=secret").status_code == 403
    client.get("/stream?channel=open").close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_that_anybody_may_read_is_logged(sse: ServerSentEventsBlueprint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sse"):
        site(sse)
    assert len(caplog.messages) == 1


def test_messages_are_iterated(sse: ServerSentEventsBlueprint) -> None:
    app = site(sse)
    with app.app_context():
        found = sse.messages("a")
        # It begins where the first message is asked for.
        import threading

        threading.Timer(0.2, lambda: _publish(app, sse)).start()
        assert next(found) == Message("x", type="t", id=next(iter(_ids(app))))


def _ids(app: Flask) -> list[str]:
    return [app.extensions["sse"].channels.info("a").last_id]


def _publish(app: Flask, sse: ServerSentEventsBlueprint) -> None:
    with app.app_context():
        sse.publish("x", type="t", channel="a")


def test_a_message_shows_and_compares_as_before() -> None:
    app = Flask(__name__)
    with app.app_context():
        assert str(Message({"a": 1}, type="t", id="1", retry=2)) == 'event: t\nid: 1\nretry: 2\ndata: {"a": 1}\n\n'
    assert repr(Message("x", type="t")) == "Message(data='x', type='t')"
    assert Message("x") == Message("x") != Message("x", id="1")
    assert hash(Message("x")) == hash(Message("x"))
    assert Message("x", retry=1).to_dict() == {"data": "x", "retry": 1}


def test_separators_that_are_no_line_ends_stay() -> None:
    """Flask-SSE splits data at U+2028 and U+0085."""
    app = Flask(__name__)
    with app.app_context():
        assert parse_events(str(Message("a\u2028b\u0085c")))[0].data == "a\u2028b\u0085c"
