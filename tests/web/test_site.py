"""`SSE.relay()`: a view of the site's own relays, the same way as the endpoints."""

from __future__ import annotations

import http.cookies
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from flask import Flask, Response

from sse import SSE

from ..support.ending import error_event, eventually
from ..support.service import RawClient, Service, call
from ..support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head, respond

EVENT = b"data: 1\n\n"
#: Each test has an upstream connection of its own, and so its own script.
ANSWER = respond(EVENT, fields=[EVENT_STREAM, "Connection: close"])


@dataclass
class Site:
    service: Service
    upstream: Upstream
    cookie: str = ""

    def post(self, path: str, document: object = None, cookie: str | None = None) -> RawClient:
        fields = {"Content-Type": "application/json", "Cookie": self.cookie if cookie is None else cookie}
        return call(self.service, "POST", path, fields, json.dumps(document).encode())

    def log_in(self, name: str) -> str:
        with self.post(f"/login/{name}", cookie="") as client:
            cookies = http.cookies.SimpleCookie(client.read_head().field("Set-Cookie") or "")
        return "; ".join(f"{key}={value.value}" for key, value in cookies.items())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    with Upstream() as upstream:
        upstreams = {
            "model": {"url": upstream.url, "headers": {"Authorization": "Bearer of-the-site"}},
            "away": f"http://127.0.0.1:{closed}/",
        }
        environment = {"SITE_UPSTREAMS": json.dumps(upstreams)}
        with Service(app="tests.apps.prompts:create_app()", env=environment) as service:
            found = Site(service, upstream)
            found.cookie = found.log_in("ada")
            yield found


def test_a_view_sends_a_body_of_its_own_with_the_tables_key(site: Site) -> None:
    site.upstream.script = ANSWER
    with site.post("/ask", {"text": "Größe"}) as client:
        head_ = client.read_head()
        assert (head_.status, client.read_body(), client.is_complete) == (200, EVENT, True)
    assert head_.field("X-Accel-Buffering") == "no"
    request = site.upstream.requests[-1]
    assert (request.method, request.target) == ("POST", "/v1/chat?trace=1")
    assert json.loads(request.body)["messages"][0]["content"] == "Translate: Größe"
    fields = {name: request.field(name) for name in ("Authorization", "Content-Type", "Accept", "X-Team", "Cookie")}
    assert fields == {
        "Authorization": "Bearer of-the-site",
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "X-Team": "red",
        "Cookie": None,
    }
    site.service.wait_log("stream end=complete status=200 upstream=model client=ada")


def test_a_leaving_client_cancels_the_upstream_and_its_lease(site: Site) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT))
        connection.wait_closed()

    site.upstream.script = script
    with site.post("/ask", {"text": "a"}) as client:
        client.read_until(EVENT)
        with site.post("/ask", {"text": "b"}) as second:
            head_ = second.read_head()
            assert (head_.status, second.json()["code"]) == (429, "too_many_streams")
            assert head_.field("Content-Type") == "application/problem+json"
    site.service.wait_log("stream end=client_gone status=200 upstream=model client=ada")
    site.upstream.script = ANSWER

    def is_served() -> bool:
        with site.post("/ask", {"text": "c"}) as client:
            return client.read_head().status == 200

    eventually(is_served, "the lease is released")


def test_a_truncated_stream_never_looks_complete(site: Site) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT))

    site.upstream.script = script
    with site.post("/ask", {"text": "a"}, site.log_in("bob")) as client:
        assert client.read_body() == EVENT + error_event("upstream_truncated")
        assert not client.is_complete


def test_refusals_are_the_gateways_despite_error_pages(site: Site) -> None:
    with call(site.service, "GET", "/away") as client:
        assert (client.read_head().status, client.json()["code"]) == (502, "upstream_unreachable")
    site.service.wait_log("stream end=upstream_failed status=502 upstream=away client=-")


def test_a_view_may_catch_a_refusal_and_relay_another_upstream(site: Site) -> None:
    site.upstream.script = ANSWER
    with call(site.service, "GET", "/second") as client:
        assert (client.read_head().status, client.read_body()) == (200, EVENT)
    request = site.upstream.requests[-1]
    assert (request.method, request.body) == ("POST", b"plain")
    assert (request.field("Content-Type"), request.field("Accept")) == ("text/plain", "*/*")


def test_a_path_is_text(upstream: Callable[..., Upstream]) -> None:
    """Text that is no ASCII was taken for bytes, and refused."""
    there = upstream(ANSWER)
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"there": there.url}
    sse = SSE(app)

    @app.get("/")
    def view() -> Response:
        return sse.relay("there", "/é/中?q=é中&r=%C3%A9")

    with app.test_client().get("/") as response:
        assert response.status_code == 200
    assert there.requests[-1].target == "/%C3%A9/%E4%B8%AD?q=%C3%A9%E4%B8%AD&r=%C3%A9"


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        pytest.param(("unused", "x"), {}, LookupError, id="upstream"),
        pytest.param(("there", "x"), {"json": {}, "data": b""}, ValueError, id="two-bodies"),
        pytest.param(("there", "x"), {"method": "TRACE"}, ValueError, id="method"),
        pytest.param(("there", "x"), {"client": ""}, ValueError, id="client"),
    ],
)
def test_a_mistake_of_the_view_is_an_error(
    arguments: tuple[str, str], options: dict[str, object], error: type[Exception]
) -> None:
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"there": "http://127.0.0.1:1/"}
    sse = SSE(app)
    with app.test_request_context("/"), pytest.raises(error):
        sse.relay(*arguments, **options)  # type: ignore[arg-type]  # the wrong types are the case
