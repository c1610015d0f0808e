"""Channels on the wire, under the servers that sites run, in one process and in several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from flask import Flask

from sse import SSE, ServerSentEvent
from sse.errors import StoreUnavailable

from .support.ending import eventually
from .support.program import RedisServer
from .support.service import ROOT, Process, RawClient, environment, run

CONF = str(ROOT / "gunicorn.conf.py")
GUNICORN = ["-m", "gunicorn", "tests.apps.channels:app", "-b", "127.0.0.1:0", "-c"]
#: How a site is started under each server, on a port of its own choice.
COMMANDS = {
    "stream-worker": [*GUNICORN, CONF],
    "gevent": [*GUNICORN, CONF, "-k", "gevent"],
    "gthread": [
        "-m",
        "gunicorn",
        "tests.apps.channels:app",
        "-b",
        "127.0.0.1:0",
        "-c",
        os.devnull,
        "-k",
        "gthread",
        "--threads",
        "9",
    ],
    "flask": ["-m", "flask", "--app", "tests.apps.channels", "run", "--port", "0"],
    "waitress": ["-m", "waitress", "--listen", "127.0.0.1:0", "--threads", "9", "tests.apps.channels:app"],
}
LISTENING = r"(?:Listening at|Running on|Serving on):? http://127\.0\.0\.1:(\d+)"


class Site(Process):
    """The site of `tests.apps.channels` under a server."""

    host = "127.0.0.1"

    def __init__(self, server: str, *args: str, **settings: object) -> None:
        self.server = server
        super().__init__([sys.executable, *COMMANDS[server], *args], env=environment(settings, {}))
        self.port = int(self.wait_log(LISTENING, 20)[1])

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        with RawClient(self.host, self.port) as client:
            client.request(method, path, body=body if body is not None or method == "GET" else b"")
            return client.read_head().status, client.read_body().decode()

    def publish(self, channel: str, data: str) -> str:
        """Publish, and return the event's id."""
        status, text = self.ask("POST", f"/publish/{channel}", data.encode())
        assert status == 200, text
        return text

    def read(self, query: str, last: str = "", **options: Any) -> RawClient:
        """Open a stream; the caller closes."""
        client = RawClient(self.host, self.port, **options)
        fields = {"X-Request-Id": uuid.uuid4().hex, **({"Last-Event-ID": last} if last else {})}
        client.request("GET", f"/read?{query}", fields)
        return client


@pytest.fixture(params=COMMANDS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(request.param) as site:
        yield site


@pytest.fixture
def fast_site() -> Iterator[Site]:
    with Site("stream-worker") as site:
        yield site


def first_id(client: RawClient) -> str:
    """Return the id of the first block."""
    assert client.read_head().status == 200
    client.read_until(b"\n\n")
    return client.body.partition(b"\n\n")[0].removeprefix(b"id: ").decode()


def problem(client: RawClient) -> tuple[int, str]:
    status = client.read_head().status
    return status, json.loads(client.read_body())["code"]


def test_a_reader_gets_what_is_published(site: Site) -> None:
    with site.read("c=a&c=b") as client:
        first_id(client)
        assert client.head is not None
        assert client.head.field("Content-Type") == "text/event-stream; charset=utf-8"
        one, two = site.publish("a", "1\u2028one"), site.publish("b", "2\ntwo")
        client.read_until(b"two\n\n")
    assert client.body.endswith(f"id: {one}\ndata: 1\u2028one\n\nid: {two}\ndata: 2\ndata: two\n\n".encode())


def test_a_reader_comes_back_and_misses_nothing(site: Site) -> None:
    with site.read("c=a") as client:
        last = first_id(client)
    for number in range(3):
        site.publish("a", str(number))
    with site.read("c=a", last) as client:
        client.read_until(b"data: 2\n\n")
    assert re.findall(rb"data: (\d)", client.body) == [b"0", b"1", b"2"]
    with site.read(f"c=a&lastEventId={last}") as client:
        client.read_until(b"data: 2\n\n")


def test_a_closed_channel_ends_its_readers(site: Site) -> None:
    with site.read("c=a") as client:
        first_id(client)
        last = site.publish("a", "rest")
        site.ask("POST", "/close/a")
        assert b"data: rest" in client.read_body()
        assert client.is_complete
    with site.read("c=a", last) as client:
        assert client.read_head().status == 204


def test_readers_that_leave_are_counted_out(site: Site) -> None:
    clients = [site.read("c=a") for _ in range(3)]
    for client in clients:
        first_id(client)
    assert json.loads(site.ask("GET", "/info/a")[1])["readers"] == 3
    for client in clients:
        client.close()

    def are_counted_out() -> bool:
        # waitress notices it only when it writes to them next.
        site.publish("a", "x")
        return bool(json.loads(site.ask("GET", "/info/a")[1])["readers"] == 0)

    eventually(are_counted_out, "they are still counted")


@pytest.mark.parametrize(
    ("query", "last"),
    [
        pytest.param("c=a", "7", id="an-id-of-another-kind"),
        pytest.param("c=a", "abcd-x", id="not-a-number"),
        pytest.param("c=a%20b", "", id="no-channel-name"),
        pytest.param("c=*", "", id="wildcard"),
        pytest.param("", "", id="no-channel"),
        pytest.param("&".join(f"c=c{number}" for number in range(17)), "", id="too-many-channels"),
    ],
)
def test_what_cannot_be_read_is_refused(fast_site: Site, query: str, last: str) -> None:
    with fast_site.read(query, last) as client:
        assert problem(client) == (400, "invalid_request")


def test_the_endpoint_lets_in_whom_the_rule_does(fast_site: Site) -> None:
    with RawClient(fast_site.host, fast_site.port) as client:
        client.request("GET", "/channels?channel=public.a&channel=public.b")
        first_id(client)
        fast_site.publish("public.b", "x")
        client.read_until(b"data: x\n\n")
    for path in ("/channels?channel=secret", "/channels?channel=public.a&channel=secret", "/channels?channel=a%20b"):
        with RawClient(fast_site.host, fast_site.port) as client:
            client.request("GET", path)
            assert problem(client) == (403, "channel_not_allowed")


def test_without_a_rule_there_is_no_endpoint() -> None:
    app = Flask(__name__)
    SSE(app)
    assert app.test_client().get("/channels?channel=a").status_code == 404


def test_readers_are_bounded() -> None:
    with Site("stream-worker", SSE_MAX_READERS_PER_CLIENT=2) as site, ExitStack() as stack:
        for _ in range(2):
            first_id(stack.enter_context(site.read("c=a")))
        with site.read("c=a") as client:
            assert problem(client) == (429, "too_many_streams")
        stack.close()
        eventually(lambda: site.ask("GET", "/info/a")[1].count('"readers":0') == 1, "they are still counted")
        with site.read("c=a") as client:
            first_id(client)


def test_readers_that_wait_take_no_greenlet(fast_site: Site) -> None:
    with ExitStack() as stack:
        first_id(stack.enter_context(fast_site.read("c=a")))
        before = int(fast_site.ask("GET", "/greenlets")[1])
        clients = [stack.enter_context(fast_site.read("c=a", timeout=20)) for _ in range(30)]
        for client in clients:
            first_id(client)
        # A first piece may be here before its greenlet has ended.
        eventually(lambda: int(fast_site.ask("GET", "/greenlets")[1]) <= before, "their greenlets are still there")
        fast_site.publish("a", "all")
        for client in clients:
            client.read_until(b"data: all\n\n")


def test_a_silent_reader_gets_heartbeats() -> None:
    with Site("stream-worker", SSE_HEARTBEAT=0.2) as site, site.read("c=a") as client:
        first_id(client)
        client.read_until(b":\n:\n")


def test_a_reader_that_does_not_read_is_ended_alone() -> None:
    with (
        Site("stream-worker", SSE_CHANNEL_HISTORY=20) as site,
        site.read("c=a", receive_buffer=4096) as stalled,
        site.read("c=a") as other,
    ):
        first_id(stalled), first_id(other)
        for number in range(400):
            last = site.publish("a", f"{number} " + "x" * 60_000)
            other.read_until(f"id: {last}\n".encode())
            other.body = b""
        assert stalled.read_body() is not None
        assert stalled.ending == "aborted"
        site.wait_log(r"stream end=too_slow .*upstream=own:read")


def test_one_stalled_reader_among_100_delays_none() -> None:
    """It reads a second channel too, whose events fill its socket without the others having to read as much."""
    readers, events = 99, 200
    with Site("stream-worker", SSE_CHANNEL_HISTORY=20, SSE_MAX_READERS_PER_CLIENT=100) as site, ExitStack() as stack:
        stalled = stack.enter_context(site.read("c=a&c=large", receive_buffer=4096))
        first_id(stalled)
        others = [stack.enter_context(site.read("c=a", receive_buffer=8192)) for _ in range(readers)]
        for other in others:
            first_id(other)
            other.body = b""
        for number in range(events):
            site.publish("large", "x" * 60_000)
            last = site.publish("a", str(number))
            expected = f"id: {last}\ndata: {number}\n\n".encode()
            for other in others:
                other.read_until(b"\n\n")
                assert other.body == expected
                other.body = b""
        assert "stream end=" not in site.log(), "the stalled one was given up, so the others may have waited for that"
        assert stalled.read_body() is not None
        assert stalled.ending == "aborted"
        site.wait_log(r"stream end=too_slow .*upstream=own:read")
        assert site.log().count("stream end=") == 1


def test_a_draining_worker_ends_readers_that_come_back() -> None:
    with Site("stream-worker", "--graceful-timeout", "10") as site, site.read("c=a") as client:
        first_id(client)
        site.terminate()
        assert b"event: error\nretry: " in client.read_body()
        assert client.ending == "aborted"
        site.wait_log(r"stream end=draining .*upstream=own:read")


def test_a_duration_ends_a_stream(fast_site: Site) -> None:
    with fast_site.read("c=a&duration=0.5") as client:
        assert b"max_duration" in client.read_body()


# Several processes


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[Site]:
    with Site("stream-worker", "--workers", "2", SSE_STORAGE_URI=redis_server.url) as site:
        yield site


def test_workers_read_what_any_of_them_publishes(shared: Site) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(shared.read("c=a")) for _ in range(8)]
        for client in clients:
            first_id(client)
        for number in range(20):
            shared.publish("a", str(number))
        for client in clients:
            client.read_until(b"data: 19\n\n")
            assert re.findall(rb"data: (\d+)", client.body) == [str(number).encode() for number in range(20)]


def command(*arguments: str, input: str | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "flask", "--app", "tests.apps.channels", "sse", "publish", *arguments]
    env = environment(settings, {})
    if input is None:
        return run(line, env=env)
    return subprocess.run(line, cwd=ROOT, env=env, input=input, capture_output=True, text=True)


def test_the_command_publishes(shared: Site, redis_server: RedisServer) -> None:
    with shared.read("c=a") as client:
        first_id(client)
        done = command("a", "hello", "--event", "news", SSE_STORAGE_URI=redis_server.url)
        assert done.returncode == 0, done.stderr
        client.read_until(f"id: {done.stdout.strip()}\nevent: news\ndata: hello\n\n".encode())
        done = command("a", "-", input="from\nstdin\n", SSE_STORAGE_URI=redis_server.url)
        client.read_until(b"data: from\ndata: stdin\n\n")


def test_the_command_refuses_what_no_reader_would_get(redis_server: RedisServer) -> None:
    done = command("a", "hello")
    assert done.returncode == 1
    assert "SSE_STORAGE_URI" in done.stderr
    assert command("a b", "x", SSE_STORAGE_URI=redis_server.url).returncode == 1
    redis_server.stop()
    done = command("a", "x", SSE_STORAGE_URI=redis_server.url)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_killed_workers_readers_miss_nothing(shared: Site) -> None:
    with shared.read("c=a") as client:
        last = first_id(client)
        for pid in shared.children():
            os.kill(pid, signal.SIGKILL)
        assert client.read_body() is not None
        shared.publish("a", "meanwhile")
    with shared.read("c=a", last) as client:
        client.read_until(b"data: meanwhile\n\n")


def test_a_store_that_is_full_is_a_refusal(redis_server: RedisServer) -> None:
    with Site("stream-worker", SSE_STORAGE_URI=redis_server.url) as site, site.read("c=a") as client:
        first_id(client)
        site.publish("a", "before")
        with redis.Redis.from_url(redis_server.url) as store:
            store.config_set("maxmemory", 1)
            status, text = site.ask("POST", "/publish/a", b"lost")
            assert (status, json.loads(text)["code"]) == (503, "store_unavailable")
            store.config_set("maxmemory", 0)
        site.publish("a", "after")
        client.read_until(b"data: after\n\n")
        assert re.findall(rb"data: (\w+)", client.body) == [b"before", b"after"]


def test_a_thousand_readers_vanish_and_nothing_of_them_is_left(redis_server: RedisServer) -> None:
    most = 1000
    settings = {"SSE_STORAGE_URI": redis_server.url, "SSE_MAX_READERS_PER_CLIENT": most}
    live, leases = "sse:{channel}:live:a", "sse-readers:address:127.0.0.1"
    with Site("stream-worker", "--workers", "1", **settings) as site, redis.Redis.from_url(redis_server.url) as store:
        site.ask("GET", "/healthz")
        (pid,) = site.children()
        left = []
        # The first ones leave connections to the store, which are kept for the next.
        for _ in range(2):
            with ExitStack() as stack:
                clients = []
                for _ in range(most):
                    clients.append(stack.enter_context(site.read("c=a", timeout=60)))
                    first_id(clients[-1])
                assert dict(store.pubsub_numsub(live)) == {live.encode(): 1}
                site.publish("a", "all")
                for client in clients:
                    client.read_until(b"data: all\n\n")
            eventually(lambda: '"readers":0' in site.ask("GET", "/info/a")[1], "readers are left")
            eventually(lambda: store.zcard(leases) == 0, "leases are left")
            eventually(lambda: store.pubsub_numsub(live)[0][1] == 0, "the subscription is left")
            left.append(len(os.listdir(f"/proc/{pid}/fd")))
        assert left[1] <= left[0] + 5


def test_a_rolling_restart_loses_and_repeats_nothing(redis_server: RedisServer) -> None:
    app = Flask(__name__)
    app.config["SSE_STORAGE_URI"] = redis_server.url
    publisher = SSE(app)
    seen: list[list[int]] = [[] for _ in range(8)]
    with Site("stream-worker", "--workers", "2", "--graceful-timeout", "10", SSE_STORAGE_URI=redis_server.url) as site:
        begun = threading.Barrier(len(seen) + 1, timeout=60)
        threads = [threading.Thread(target=read_on, args=(site, numbers, begun)) for numbers in seen]
        for thread in threads:
            thread.start()
        begun.wait()
        for number in range(600):
            if number in (100, 300):
                os.kill(site.pid, signal.SIGHUP)
            with app.app_context():
                publisher.publish("a", str(number))
            time.sleep(0.01)
        for thread in threads:
            thread.join(60)
        assert site.log().count("stream end=draining") >= len(seen)
    assert seen == [list(range(600))] * len(seen)


def read_on(site: Site, numbers: list[int], begun: threading.Barrier) -> None:
    """Read until the last number has come, as an EventSource that reconnects."""
    last = ""
    while not numbers or numbers[-1] < 599:
        with site.read("c=a", last, timeout=60) as client:
            if client.read_head().status != 200:
                continue
            is_first = not last
            while client.read_piece() is not None:
                whole = client.body.rpartition(b"\n\n")[0]
                last = re.findall(rb"^id: (.*)$", whole, re.MULTILINE)[-1].decode() if whole else last
                if is_first and last:
                    is_first = False
                    begun.wait()
                if whole.endswith(b"data: 599"):
                    break
            numbers += map(int, re.findall(rb"^data: (\d+)$", client.body.rpartition(b"\n\n")[0], re.MULTILINE))


def test_a_store_that_is_away_is_a_refusal(redis_server: RedisServer) -> None:
    with Site("stream-worker", SSE_STORAGE_URI=redis_server.url) as site, site.read("c=a") as client:
        first_id(client)
        redis_server.stop()
        status, text = site.ask("POST", "/publish/a", b"x")
        assert (status, json.loads(text)["code"]) == (503, "store_unavailable")
        with site.read("c=b") as other:
            assert problem(other) == (503, "store_unavailable")
        redis_server.start()
        eventually(lambda: site.ask("POST", "/publish/a", b"meanwhile")[0] == 200, "it does not recover")
        # This Redis keeps nothing, so it begins another sequence.
        client.read_until(b"event: reset\n")
        site.publish("a", "after")
        client.read_until(b"data: after\n\n")


# The interface


@pytest.fixture
def sse() -> Iterator[SSE]:
    app = Flask(__name__)
    app.config["SSE_CHANNEL_MAX_EVENT"] = 100
    extension = SSE(app)
    with app.app_context():
        yield extension


@pytest.mark.parametrize(
    ("channel", "data", "error"),
    [
        pytest.param("a b", "x", ValueError, id="channel-name"),
        pytest.param("", "x", ValueError, id="empty-channel-name"),
        pytest.param("a", ServerSentEvent(id="7", data="x"), ValueError, id="an-id-of-its-own"),
        pytest.param("a", "x" * 100, ValueError, id="too-long"),
        pytest.param("a", object(), TypeError, id="not-json"),
    ],
)
def test_what_cannot_be_published_is_an_error(sse: SSE, channel: str, data: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        sse.publish(channel, data)
    assert sse.channel_info("a").events == 0


def test_what_is_published_can_be_seen(sse: SSE) -> None:
    last = sse.publish("a", {"id": 7}, event="created", retry=1000)
    assert re.fullmatch(r"[0-9a-f]{8}-1", last)
    info = sse.channel_info("a")
    assert (info.last_id, info.events, info.readers) == (last, 1, 0)


def test_what_is_published_and_read_is_counted() -> None:
    app = Flask(__name__)
    app.config["SSE_METRICS"] = True
    sse = SSE(app, channels=lambda request, channel: True)
    client = app.test_client()
    with app.app_context():
        sse.publish("a", "x")
        sse.publish("b", "y")
    response = client.get("/channels?channel=a")
    assert b"sse_channel_events_total 2.0" in client.get("/metrics").data
    assert b"sse_channel_readers 1.0" in client.get("/metrics").data
    response.close()
    assert b"sse_channel_readers 0.0" in client.get("/metrics").data


def test_workers_with_separate_channels_are_warned_of_once() -> None:
    with Site("stream-worker", "--workers", "2") as site:
        for _ in range(8):
            site.publish("a", "x")
        assert 1 <= site.log().count("readers of other workers") <= 2


def test_one_worker_is_not_warned(fast_site: Site) -> None:
    fast_site.publish("a", "x")
    assert "readers of other workers" not in fast_site.log()


def test_the_doctor_finds_workers_with_channels_of_their_own() -> None:
    line = [sys.executable, "-m", "flask", "--app", "tests.apps.channels", "sse", "doctor"]
    env = environment({}, {"GUNICORN_CMD_ARGS": "-w 3"})
    done = run(line, env=env)
    assert re.search("fail +workers.*3 with separate channels", done.stdout), done.stdout


def test_a_thread_without_gevent_publishes(redis_server: RedisServer) -> None:
    """A task queue's worker, say, whose threads are the system's."""
    code = (
        "import threading, sys\n"
        "from flask import Flask\n"
        "from sse import SSE\n"
        "app = Flask('worker')\n"
        "app.config.from_prefixed_env()\n"
        "sse = SSE(app, relay=False)\n"
        "def work(number):\n"
        "    with app.app_context():\n"
        "        sse.publish('a', str(number))\n"
        "threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert not sys.modules['gevent.monkey'].saved\n"
    )
    env = environment({"SSE_STORAGE_URI": redis_server.url}, {"PYTHONPATH": str(ROOT)})
    with Site("stream-worker", SSE_STORAGE_URI=redis_server.url) as site, site.read("c=a") as client:
        first_id(client)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, timeout=60)
        while client.body.count(b"data: ") < 20:
            assert client.read_piece() is not None
    assert sorted(map(int, re.findall(rb"data: (\d+)", client.body))) == list(range(20))


def test_a_reader_whose_response_is_dropped_is_counted_out() -> None:
    """Such readers stayed for good, until SSE_MAX_READERS refused all others."""
    app = Flask(__name__)
    sse = SSE(app)

    @app.get("/")
    def view() -> str:
        sse.subscribe("a")
        return "maintenance"

    assert app.test_client().get("/").text == "maintenance"
    state = app.extensions["sse"]
    eventually(lambda: len(state.readers) == 0, "the reader is counted out")
    eventually(lambda: state.channels.info("a").readers == 0, "the reader is released")


def test_publishing_needs_an_app() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        SSE().publish("a", "x")


def test_a_store_that_is_away_is_an_error(redis_server: RedisServer) -> None:
    app = Flask(__name__)
    app.config["SSE_STORAGE_URI"] = redis_server.url
    sse = SSE(app)
    redis_server.stop()
    with app.app_context(), pytest.raises(StoreUnavailable):
        sse.publish("a", "x")
