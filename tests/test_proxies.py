"""The service behind nginx and Caddy with the files of deploy/: nothing is held back, changed, doubled or let out."""

from __future__ import annotations

import gzip
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from .support.ending import error_event
from .support.program import program
from .support.proxy import DEPLOY, LISTEN, PLAIN, START, Edit, Proxy, start_nginx
from .support.service import RawClient, Service
from .support.upstream import (
    EVENT_STREAM,
    LAST_CHUNK,
    Connection,
    Script,
    Upstream,
    authority,
    chunk,
    head,
    respond,
)

CHUNKED = "Transfer-Encoding: chunked"

#: Small, so that each would sit in a buffer, and in part what a compressor would like.
EVENTS = ["data: zwölf 🌊\n\n".encode(), b": \r\n\r\n", b"data: " + b"x" * 500 + b"\n\n", b"data: 4\n\n"]

#: As gunicorn.conf.py has it, for the proxies' own numbers agree with that.
KEEP_ALIVE = ("--keep-alive", "5")


class Stage:
    """A proxy, the services behind it, and the upstream behind these as `test`."""

    def __init__(self, proxy: Proxy, upstream: Upstream) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.clients: list[RawClient] = []

    def call(self, method: str, target: str, *args: Any, **options: Any) -> RawClient:
        """See `Proxy.call`; closed when the test ends."""
        self.clients.append(self.proxy.call(method, target, *args, **options))
        return self.clients[-1]

    def forward(self, script: Script, fields: Mapping[str, str] | None = None, **options: Any) -> RawClient:
        """Let the upstream answer by `script`, and send `POST /forward-sse` for it."""
        self.upstream.script = script
        body = json.dumps({"targetUrl": f"{self.upstream.url}/", "body": {}}).encode()
        return self.call(
            "POST", "/forward-sse", {"Content-Type": "application/json", **(fields or {})}, body, **options
        )

    def settle(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()
        self.upstream.settle()


def behind(**settings: Any) -> dict[str, Any]:
    """Return the settings of a service behind one proxy."""
    return {"SSE_TRUSTED_PROXIES": 1, "SSE_THROTTLE": "", **settings}


def address(service: Service | Upstream) -> str:
    return f"{service.host}:{service.port}"


@pytest.fixture(scope="module", params=list(START))
def whole_stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream())
        settings = behind(SSE_UPSTREAMS={"test": upstream.url}, SSE_METRICS=True)
        service = stack.enter_context(Service(*KEEP_ALIVE, **settings))
        proxy = START[request.param]([address(service)], directory)
        stack.callback(proxy.stop)
        yield Stage(proxy, upstream)


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    """The shared proxy, service and upstream, with nothing left of the test before."""
    yield whole_stage
    whole_stage.settle()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """`nginx([address, ...], edits)` starts one for this test."""
    with ExitStack() as stack:

        def start(relays: Sequence[str], edits: Sequence[Edit] = PLAIN) -> Proxy:
            proxy = start_nginx(relays, tmp_path, edits)
            stack.callback(proxy.stop)
            return proxy

        yield start


# What is sent arrives at once and unchanged


class Steps:
    """A response whose head and events are each sent when the test says so."""

    def __init__(self, content_type: str = EVENT_STREAM) -> None:
        self.content_type = content_type
        self.gates = [threading.Event() for _ in (*EVENTS, LAST_CHUNK)]

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, self.content_type, CHUNKED))
        for gate, piece in zip(self.gates, [*map(chunk, EVENTS), LAST_CHUNK], strict=True):
            connection.wait_for(gate)
            connection.send(piece)

    def follow(self, client: RawClient) -> None:
        """Let each event be sent when the client has read what was sent before.

        :raises TimeoutError: if something is held back.
        """
        assert client.read_head().status == 200
        for gate, event in zip(self.gates, EVENTS, strict=False):
            before = client.body
            gate.set()
            while client.body != before + event:
                assert client.read_piece() is not None, client.ending
        self.gates[-1].set()
        assert client.read_body() == b"".join(EVENTS)
        assert client.is_complete


@pytest.mark.parametrize("content_type", [EVENT_STREAM, "Content-Type: application/x-ndjson"])
def test_each_event_arrives_before_the_next_is_sent(stage: Stage, content_type: str) -> None:
    """The client's wish to have it compressed is ignored on the way."""
    steps = Steps(content_type)
    client = stage.forward(steps, {"Accept-Encoding": "gzip, br, deflate"})
    steps.follow(client)
    assert client.head and client.head.field("Content-Encoding") is None


def test_an_event_source_comes_through_and_back(stage: Stage) -> None:
    stage.upstream.script = steps = Steps()
    steps.follow(stage.call("GET", "/upstream/test/feed", {"Accept": "text/event-stream", "Last-Event-ID": "41"}))
    assert stage.upstream.wait_request().field("Last-Event-ID") == "41"


#: What makes nginx hold events back, if nothing speaks against it, not even the relay's own X-Accel-Buffering.
UNHEARD: Edit = (r"^ *gzip off;$", "gzip off; proxy_ignore_headers X-Accel-Buffering;")


def test_nginx_needs_no_word_of_the_relay(
    nginx: Callable[..., Proxy], upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    steps = Steps()
    proxy = nginx([address(ticker(steps, upstream, service))], [*PLAIN, UNHEARD])
    with proxy.call("GET", "/upstream/test/") as client:
        steps.follow(client)


def test_with_nginx_as_it_comes_events_are_held_back(
    nginx: Callable[..., Proxy], upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """The control: what the tests above see with deploy/nginx.conf, they would not see with just any configuration."""
    steps = Steps()
    unset = [(rf"^ *{name} .*$", "") for name in ("proxy_http_version", "proxy_buffering")]
    proxy = nginx([address(ticker(steps, upstream, service))], [*PLAIN, UNHEARD, *unset])
    with proxy.call("GET", "/upstream/test/", timeout=1) as client, pytest.raises(TimeoutError):
        steps.follow(client)


def test_compression_would_hold_events_back(
    nginx: Callable[..., Proxy], upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """The other control: nginx does not look at `no-transform`."""
    steps = Steps()
    gzip_on = (r"^ *gzip off;$", "gzip on; gzip_types text/event-stream;")
    proxy = nginx([address(ticker(steps, upstream, service))], [*PLAIN, gzip_on])
    with proxy.call("GET", "/upstream/test/", {"Accept-Encoding": "gzip"}, timeout=1) as client:
        with pytest.raises((TimeoutError, AssertionError)):
            steps.follow(client)
        assert client.head and client.head.field("Content-Encoding") == "gzip"


def ticker(script: Script, upstream: Callable[..., Upstream], service: Callable[..., Service]) -> Service:
    """Return a service with an upstream `test` that responses by `script`."""
    return service(*KEEP_ALIVE, **behind(SSE_UPSTREAMS={"test": upstream(script).url}))


@pytest.mark.parametrize("accepted", ["gzip", None])
def test_what_the_upstream_compressed_stays_compressed(stage: Stage, accepted: str | None) -> None:
    packed = gzip.compress(b"data: hello\n\n")
    script = respond(packed, fields=[EVENT_STREAM, "Content-Encoding: gzip"])
    client = stage.forward(script, {"Accept-Encoding": accepted} if accepted else {})
    assert (client.read_head().field("Content-Encoding"), client.read_body()) == ("gzip", packed)


def truncated(body: bytes) -> Script:
    """Return a script that leaves in the middle of its response."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, CHUNKED) + chunk(body))

    return script


def test_the_last_event_of_a_truncated_answer_says_so(stage: Stage) -> None:
    client = stage.forward(truncated(b"data: x\n\n"))
    assert client.read_body() == b"data: x\n\n" + error_event("upstream_truncated")


def test_behind_nginx_a_truncated_answer_does_not_look_complete(
    nginx: Callable[..., Proxy], upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """Behind Caddy it depends on the version, so nothing is promised."""
    proxy = nginx([address(ticker(truncated(b"data: half"), upstream, service))])
    with proxy.call("GET", "/upstream/test/") as client:
        assert client.read_body() == b"data: half"
        assert client.ending == "aborted"


def test_a_client_that_leaves_is_noticed_behind_the_proxy(stage: Stage) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, CHUNKED) + chunk(b"data: x\n\n"))
        connection.wait_closed()

    stage.forward(script).read_until(b"data: x\n\n")
    stage.clients[0].close()
    stage.upstream.wait_connection().wait_closed()


def test_the_target_passes_byte_for_byte(stage: Stage) -> None:
    stage.upstream.script = respond(b"data: x\n\n")
    path = "a//b/%E4%BD%A0;d=1?key=%20&e=f%2Bg&e="
    assert stage.call("GET", f"/upstream/test/{path}").read_body() == b"data: x\n\n"
    assert stage.upstream.wait_request().target == f"/{path}"


def test_a_large_body_passes(stage: Stage) -> None:
    body = bytes(range(256)) * (10 * 1024 * 1024 // 256)
    stage.upstream.script = respond(b"data: x\n\n")
    client = stage.call("POST", "/upstream/test/", {"Content-Type": "application/octet-stream"}, body)
    assert client.read_body() == b"data: x\n\n"
    assert stage.upstream.wait_request().body == body


def test_one_that_is_too_large_is_refused_by_the_relay(stage: Stage) -> None:
    client = stage.call("POST", "/upstream/test/", {"Content-Length": str(10 * 1024 * 1024 + 1)})
    with suppress(BrokenPipeError, ConnectionResetError):
        # It need not be read to its end.
        client.send(b"x" * (10 * 1024 * 1024 + 1))
    assert client.read_head().status == 413
    assert client.json()["code"] == "too_large"


# Who is who

#: Loopback as well, but not the address from which those on this machine call it.
OUTSIDE = "127.0.0.2"


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_what_is_kept_inside_is_there_for_this_machine(stage: Stage, path: str) -> None:
    assert stage.call("GET", path).read_head().status == 200


@pytest.mark.parametrize("name", ["metrics", "readyz"])
@pytest.mark.parametrize(
    "target",
    [
        "/{}",
        "/{}?x=1",
        "//{}",
        "/./{}",
        "/docs/../{}",
        "/docs/..%2F{}",
        "/%{:x}{}",
        "http://127.0.0.1/{}",
    ],
)
def test_and_for_no_other_client(stage: Stage, name: str, target: str) -> None:
    target = target.replace("%{:x}{}", f"%{ord(name[0]):x}{name[1:]}").replace("{}", name)
    liar = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    client = stage.call("GET", target, liar, source=OUTSIDE)
    assert client.read_head().status in (403, 404)
    assert not re.search(rb"sse_|ok", client.read_body())


def test_the_rest_is_there_for_all(stage: Stage) -> None:
    for path in ("/", "/healthz", "/docs"):
        assert stage.call("GET", path, source=OUTSIDE).read_head().status == 200, path


@pytest.mark.parametrize("kind", list(START))
def test_each_client_is_counted_for_itself(kind: str, tmp_path: Path, service: Callable[..., Service]) -> None:
    """The throttle counts the address that the proxy saw, whatever the client says it is."""
    running = service(*KEEP_ALIVE, **behind(SSE_THROTTLE="2 per 1 hour"))
    proxy = START[kind]([address(running)], tmp_path)

    def status(source: str, claim: str) -> int:
        fields = {"X-Forwarded-For": claim}
        with proxy.call("GET", "/upstream/demo/v1/models", fields, source=source) as client:
            return client.read_head().status

    try:
        shown = [status("127.0.0.2", f"192.0.2.{number}") for number in range(3)]
        others = [status("127.0.0.3", "127.0.0.2") for _ in range(3)]
    finally:
        proxy.stop()
    assert [code == 429 for code in shown] == [code == 429 for code in others] == [False, False, True]


def test_a_query_is_not_in_the_access_log(
    nginx: Callable[..., Proxy], tmp_path: Path, upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    proxy = nginx([address(ticker(respond(b"data: x\n\n"), upstream, service))])
    with proxy.call("GET", "/upstream/test/feed?key=secret", {"Referer": "http://site/?secret"}) as client:
        client.read_body()
    proxy.stop()
    logged = (tmp_path / "access.log").read_text()
    assert "GET /upstream/test/feed" in logged
    assert "secret" not in logged + proxy.process.log()


# Several hosts


def test_connections_to_gunicorn_are_kept(nginx: Callable[..., Proxy], upstream: Callable[..., Upstream]) -> None:
    host = upstream(respond(b"here"))
    with nginx([address(host)]).call("GET", "/") as client:
        # On one connection, for another one may be that of another process of nginx.
        for _ in range(3):
            client.request("GET", "/")
            assert client.read_body() == b"here"
    assert len(host.connections) == 1
    assert host.wait_request().field("Connection") is None


def test_a_host_that_takes_no_connection_is_passed_over(
    nginx: Callable[..., Proxy], upstream: Callable[..., Upstream]
) -> None:
    one, gone = upstream(respond(b"here")), upstream()
    gone.refuse()
    proxy = nginx([address(gone), address(one)])
    for _ in range(4):
        with proxy.call("POST", "/forward-sse", {}, b"{}") as client:
            assert (client.read_head().status, client.read_body()) == (200, b"here")
    assert "Connection refused" in proxy.process.log()


def lost(connection: Connection) -> None:
    """Take a request and leave without a response."""
    connection.read_request()


@pytest.mark.parametrize("kind", list(START))
@pytest.mark.parametrize(
    ("script", "status"),
    [
        pytest.param(lost, 502, id="lost"),
        *(
            pytest.param(respond(b"no", status=status, framing="length"), status, id=str(status))
            for status in (429, 502, 503, 504)
        ),
    ],
)
def test_a_request_is_never_sent_twice(kind: str, script: Script, status: int, tmp_path: Path) -> None:
    """A model's response is paid once, whichever host got the question and whatever became of it."""
    with Upstream(script) as one, Upstream(script) as other:
        hosts = {"nginx": [one, other], "caddy": [one]}[kind]
        proxy = START[kind]([address(host) for host in hosts], tmp_path)
        try:
            with proxy.call("POST", "/forward-sse", {}, b"{}") as client:
                assert client.read_head().status == status
        finally:
            proxy.stop()
        assert len(one.requests + other.requests) == 1


Hosts = tuple[Proxy, list[Service], list[Upstream]]


@pytest.fixture
def two_hosts(
    nginx: Callable[..., Proxy],
    redis_server: Any,
    upstream: Callable[..., Upstream],
    service: Callable[..., Service],
) -> Callable[..., Hosts]:
    """`two_hosts(script, SSE_...=...)`: nginx, two gunicorns with one Redis, and behind each an upstream of its own."""

    def start(script: Script, **settings: Any) -> Hosts:
        upstreams = [upstream(script) for _ in range(2)]
        services = [
            service(
                *KEEP_ALIVE,
                *("--workers", "1"),
                **behind(SSE_UPSTREAMS={"test": one.url}, SSE_STORAGE_URI=redis_server.url, **settings),
            )
            for one in upstreams
        ]
        return nginx([address(one) for one in services]), services, upstreams

    return start


def at_once(proxy: Proxy, count: int, stack: ExitStack) -> list[RawClient]:
    """Return the clients of so many requests that were sent at the same time, with the heads of their answers."""
    together = threading.Barrier(count)

    def ask(_: int) -> RawClient:
        together.wait()
        client = proxy.call("POST", "/upstream/test/", {}, b"{}")
        client.read_head()
        return client

    with ThreadPoolExecutor(count) as pool:
        return [stack.enter_context(client) for client in pool.map(ask, range(count))]


def codes(clients: Sequence[RawClient]) -> list[str]:
    """Return the code of each refusal."""
    return [client.json()["code"] for client in clients if client.head and client.head.status >= 400]


def held(connection: Connection) -> None:
    """Begin a stream that does not end."""
    connection.read_request()
    connection.send(head(200, EVENT_STREAM, CHUNKED))
    connection.wait_closed()


def test_two_hosts_throttle_together(two_hosts: Callable[..., Hosts]) -> None:
    proxy, services, upstreams = two_hosts(respond(b"data: x\n\n"), SSE_THROTTLE="10 per 1 hour")
    with ExitStack() as stack:
        clients = at_once(proxy, 30, stack)
        assert codes(clients) == ["throttled"] * 20
        served = [client.read_body() for client in clients if client.head and client.head.status == 200]
        assert served == [b"data: x\n\n"] * 10
        assert sum(len(one.requests) for one in upstreams) == 10
    lines = [host.log() for host in services]
    for log in lines:
        assert "code=throttled" in log or "end=complete" in log, log
    assert sum(log.count("code=throttled") for log in lines) == 20


def test_two_hosts_count_a_clients_streams_together(two_hosts: Callable[..., Hosts]) -> None:
    proxy, services, upstreams = two_hosts(held, SSE_MAX_STREAMS_PER_CLIENT=4)
    with ExitStack() as stack:
        refused = codes(at_once(proxy, 16, stack))
        assert refused == ["too_many_streams"] * 12
        assert sum(len(one.requests) for one in upstreams) == 4
        # Another client has its own.
        other = stack.enter_context(proxy.call("POST", "/upstream/test/", {}, b"{}", source=OUTSIDE))
        assert other.read_head().status == 200
    for host in services:
        host.wait_log("code=too_many_streams|end=client_gone")


def test_two_hosts_have_each_as_many_streams_as_one(two_hosts: Callable[..., Hosts]) -> None:
    """`SSE_MAX_STREAMS` is of a process; least_conn sends no client to a full one while the other has room."""
    proxy, services, upstreams = two_hosts(held, SSE_MAX_STREAMS=3, SSE_MAX_STREAMS_PER_CLIENT=0)
    with ExitStack() as stack:
        assert codes(at_once(proxy, 16, stack)) == ["at_capacity"] * 10
        assert [len(one.requests) for one in upstreams] == [3, 3]
    for host in services:
        host.wait_log("end=client_gone")


def test_a_stream_goes_where_fewest_are_open(two_hosts: Callable[..., Hosts]) -> None:
    proxy, services, upstreams = two_hosts(held, SSE_MAX_STREAMS=2, SSE_MAX_STREAMS_PER_CLIENT=0)
    with ExitStack() as stack:

        def open_stream() -> tuple[RawClient, int]:
            """Return the client, and how many streams the first host had then."""
            client = stack.enter_context(proxy.call("POST", "/upstream/test/", {}, b"{}"))
            assert client.read_head().status == 200
            return client, len(upstreams[0].requests)

        clients = [open_stream() for _ in range(4)]
        counts = [0, *(count for _, count in clients)]
        for (client, after), before in zip(clients, counts, strict=False):
            if after > before:
                client.close()
        services[0].wait_log("(?s)end=client_gone.*end=client_gone")
        assert [open_stream()[1] for _ in range(2)] == [3, 4]


# TLS

TLS: list[Edit] = [
    (r"^ *listen 80 .*\n", ""),
    (r"^ *listen \[::\]:80 .*\n", ""),
    (r"# listen 443 ", f"listen {LISTEN} "),
]


def test_the_lines_for_tls_serve_http_2(
    nginx: Callable[..., Proxy], tmp_path: Path, upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """Event for event as well: curl's output is read while the stream is open."""
    program("curl", "curl")
    certificate = authority()[0].issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "relay.pem")
    paths = [
        (r"# ssl_certificate /\S+;", f"ssl_certificate {tmp_path}/relay.pem;"),
        (r"# ssl_certificate_key /\S+;", f"ssl_certificate_key {tmp_path}/relay.pem;"),
    ]
    steps = Steps()
    relay = ticker(steps, upstream, service)
    proxy = nginx([address(relay)], [*TLS, *paths])
    context = ssl.create_default_context(cafile=str(authority()[1]))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with RawClient(proxy.host, proxy.port) as client:
        with context.wrap_socket(client.sock, server_hostname=proxy.host) as secured:
            assert secured.selected_alpn_protocol() == "h2"
    # And the same lines over HTTP/1.1, where the client of the tests can follow each step.
    context.set_alpn_protocols(["http/1.1"])
    with RawClient(proxy.host, proxy.port) as client:
        client.sock = context.wrap_socket(client.sock, server_hostname=proxy.host)
        client.request("GET", "/upstream/test/")
        steps.follow(client)


# The numbers of the files


def number(text: str, pattern: str) -> int:
    """Return the one number that a pattern finds."""
    found = re.findall(pattern, text, re.MULTILINE)
    assert len(found) == 1, found
    return int(found[0])


def test_proxy_limits_agree_with_gunicorn_and_settings(gunicorn_settings: dict[str, Any]) -> None:
    from sse.settings import Settings

    settings, nginx, caddy = Settings(), (DEPLOY / "nginx.conf").read_text(), (DEPLOY / "Caddyfile").read_text()
    longest = max(settings.idle_timeout, settings.response_timeout, settings.send_timeout)
    for name in ("proxy_read_timeout", "proxy_send_timeout", "send_timeout"):
        assert number(nginx, rf"^ *{name} (\d+)s;$") > longest
    assert number(nginx, r"^ *client_max_body_size (\d+)m;$") * 1024**2 > settings.max_body
    for text in (nginx, caddy):
        assert number(text, r"^\s*keepalive(?:_timeout)? (\d+)s;?$") < gunicorn_settings["keepalive"]
    connections = number(nginx, r"worker_connections (\d+);")
    assert 2 * gunicorn_settings["worker_connections"] < connections < number(nginx, r"worker_rlimit_nofile (\d+);")
