"""Who calls is settled before what is asked for: names, foreign pages, bodies that name their sender."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, request, session
from flask.testing import FlaskClient

from sse import SSE

from .support.ending import eventually
from .support.service import Service, call
from .support.upstream import EVENT_STREAM, Connection, Upstream, head, respond

KEY = {"Authorization": "Bearer of-the-site"}
OK = respond(b"{}", fields=["Content-Type: application/json"])

Make = Callable[..., FlaskClient]


@pytest.fixture
def site(upstream: Callable[..., Upstream]) -> Iterator[Make]:
    """`site(authorize, **config)` makes a site whose upstream `there` wants a key."""

    def make(authorize: Callable[..., object], **config: Any) -> FlaskClient:
        app = Flask(__name__)
        app.secret_key = "of the tests"
        there = upstream(OK)
        app.config.from_mapping(SSE_UPSTREAMS={"there": {"url": there.url, "headers": KEY}}, **config)
        SSE(app, authorize=authorize)  # type: ignore[arg-type]  # the wrong type is the case
        app.extensions["there"] = there

        @app.get("/login")
        def log_in() -> str:
            session["user"] = "ada"
            return ""

        return app.test_client()

    yield make


def status(client: FlaskClient, method: str = "GET", **fields: str) -> int:
    with client.open("/upstream/there/x", method=method, headers=fields) as response:
        return response.status_code


@pytest.mark.parametrize(
    "name", [None, False, True, 0, 7, "", b"ada", [], ["ada"], object()], ids=lambda name: type(name).__name__
)
def test_what_is_no_name_is_a_stranger(site: Make, name: object) -> None:
    """False once became a client called "False"."""
    assert status(site(lambda request: name)) == 401


def test_a_name_that_is_no_string_is_logged(site: Make, caplog: pytest.LogCaptureFixture) -> None:
    status(site(lambda request: 7))
    assert "authorize returned int, not a str" in caplog.text


FOREIGN = {
    "a page of another site": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "without an origin": {"Sec-Fetch-Site": "cross-site"},
    "an opaque origin": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    "an old browser": {"Origin": "https://evil.example"},
    "an old browser, opaque": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:8080"},
    "no URL": {"Origin": "http://[::1"},
    "a name that begins alike": {"Origin": "http://localhost.evil.example"},
    "Basic": {"Sec-Fetch-Site": "cross-site", "Authorization": "Basic YTpi"},
}
OWN = {
    "no browser": {},
    "the site itself": {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
    "a sibling": {"Sec-Fetch-Site": "same-site", "Origin": "https://a.localhost"},
    "typed by the user": {"Sec-Fetch-Site": "none"},
    "an old browser": {"Origin": "http://localhost"},
    "behind TLS": {"Origin": "https://localhost"},
    "named": {"Sec-Fetch-Site": "cross-site", "Origin": "https://front.example"},
    "named, an old browser": {"Origin": "https://front.example"},
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("fields", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_page_cannot_use_a_sites_login(site: Make, fields: dict[str, str], method: str) -> None:
    client = site(lambda request: session.get("user"))
    client.get("/login")
    with client.open("/upstream/there/x", method=method, data="{}", content_type="text/plain", headers=fields) as got:
        assert (got.status_code, (got.json or {})["code"]) == (403, "cross_site_request")


@pytest.mark.parametrize("fields", OWN.values(), ids=OWN)
def test_pages_of_the_site_and_named_ones_can(site: Make, fields: dict[str, str]) -> None:
    client = site(lambda request: session.get("user"), SSE_CORS_ORIGINS=["*", "https://front.example"])
    client.get("/login")
    assert status(client, **fields) == 200


def test_a_page_that_knows_a_token_may_come_from_anywhere(site: Make) -> None:
    client = site(lambda request: request.headers.get("Authorization"))
    assert status(client, Authorization="Bearer token", Origin="https://other.example") == 200


def test_csrf_tokens_and_cookies_stay_here(site: Make) -> None:
    client = site(lambda request: session.get("user"))
    client.get("/login")
    tokens: dict[str, Any] = {"X-CSRFToken": "a", "X-CSRF-Token": "b", "X-XSRF-Token": "c"}
    assert status(client, **tokens, **{"X-Plain": "d"}) == 200
    sent = client.application.extensions["there"].requests[-1]
    assert [sent.field(name) for name in (*tokens, "Cookie", "X-Plain")] == [None] * 4 + ["d"]


@pytest.mark.parametrize("kind", ["raises", "replaces", "session"])
def test_a_response_that_the_site_drops_is_released(
    upstream: Callable[..., Upstream], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask never closes it, so the client, and then everybody, was refused for good."""
    app = Flask(__name__)
    app.secret_key = "of the tests"
    app.config.from_mapping(SSE_UPSTREAMS={"there": upstream(OK).url}, SSE_MAX_STREAMS_PER_CLIENT=1)
    SSE(app)

    @app.after_request
    def after(response: Response) -> Response:
        if "bad" not in request.args:
            return response
        if kind == "replaces":
            return Response("maintenance", 503)
        if kind == "session":
            session["x"] = 1
            return response
        raise OSError("the session's store is away")

    if kind == "session":

        def fail(*args: object) -> None:
            raise OSError("the session's store is away")

        monkeypatch.setattr(app.session_interface, "save_session", fail)
    client = app.test_client()
    assert client.get("/upstream/there/x?bad=1").status_code >= 500
    monkeypatch.undo()
    state = app.extensions["sse"]
    eventually(lambda: (len(state.leases), len(state.monitor)) == (0, 0), "the lease is released")
    with client.get("/upstream/there/x") as response:
        assert response.status_code == 200


def test_a_view_may_relay_twice(upstream: Callable[..., Upstream]) -> None:
    """The response that the view had dropped kept its lease and its connection for good."""
    app = Flask(__name__)
    app.config.from_mapping(SSE_UPSTREAMS={"there": upstream(OK).url})
    sse = SSE(app)

    @app.get("/")
    def view() -> Response:
        sse.relay("there", "first")
        return sse.relay("there", "second")

    with app.test_client().get("/") as response:
        assert response.data == b"{}"
    state = app.extensions["sse"]
    eventually(lambda: (len(state.leases), len(state.monitor)) == (0, 0), "both leases are released")


def test_a_body_that_a_site_puts_into_its_own_response_goes_on(upstream: Callable[..., Upstream]) -> None:
    app = Flask(__name__)
    app.config.from_mapping(SSE_UPSTREAMS={"there": upstream(OK).url})
    SSE(app)

    @app.after_request
    def wrap(response: Response) -> Response:
        return Response(response.response, response.status, dict(response.headers))

    assert app.test_client().get("/upstream/there/x").data == b"{}"


class Unaware:
    """A server that does not say that it ends a request's body itself."""

    def __init__(self, app: Callable[..., object]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: object) -> object:
        del environ["wsgi.input_terminated"]
        return self._app(environ, start_response)


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        pytest.param("form", {"Transfer-Encoding": "chunked"}, "invalid_request", id="form, chunked"),
        pytest.param("form", {"Content-Length": "5"}, "invalid_request", id="form"),
        pytest.param("unaware", {"Transfer-Encoding": "chunked"}, "length_required", id="server"),
    ],
)
def test_a_body_that_is_gone_is_refused(
    upstream: Callable[..., Upstream], kind: str, fields: dict[str, str], code: str
) -> None:
    """An LLM was called, and paid, with an empty body."""
    there = upstream(OK)
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"there": there.url}
    SSE(app)
    if kind == "form":
        app.before_request(lambda: request.form.get("token") and None)
    else:
        app.wsgi_app = Unaware(app.wsgi_app)  # type: ignore[method-assign, assignment]  # as sites wrap an app
    refused = app.test_client().post(
        "/upstream/there/x",
        data=b"a=b&c",
        content_type="application/x-www-form-urlencoded",
        headers=fields,
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert (refused.status_code, (refused.json or {})["code"]) == (411 if kind == "unaware" else 400, code)
    assert kind == "unaware" or "the site has read" in (refused.json or {})["detail"]
    assert not there.requests


# Bodies that name their sender, through a real gunicorn.


@pytest.fixture(scope="module")
def locked() -> Iterator[tuple[Service, Upstream]]:
    with Upstream() as there:
        settings: dict[str, Any] = {"SSE_PASSCODES": {"me": "right"}, "SSE_THROTTLE": ""}
        with Service(SSE_UPSTREAMS={"there": there.url}, **settings) as service:
            yield service, there


def big(size: int) -> bytes:
    return b'{"passcode": "wrong", "body": [' + b'{"a":1.5},' * (size // 10) + b"1]}"


JSON: dict[str, Any] = {"Content-Type": "application/json"}


def test_strangers_bodies_hold_up_no_stream(locked: tuple[Service, Upstream]) -> None:
    """10 MiB of JSON were parsed before anybody was asked who calls: 0.9 to 2.2 s each."""
    service, there = locked
    is_done, gaps = threading.Event(), []

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Connection: close"))
        while not is_done.wait(0.02):
            connection.send(b"data: tick\n\n")

    there.script = script
    with call(service, "GET", "/upstream/there/", {"X-Passcode": "right"}) as client:
        client.read_until(b"tick")

        def read() -> None:
            last = time.monotonic()
            while (piece := client.read_piece()) is not None:
                gaps.append(piece.at - last)
                last = piece.at

        reader = threading.Thread(target=read)
        reader.start()
        for size, fields, expected in [
            (9_000_000, {}, 413),
            (9_000_000, {"X-Passcode": "wrong"}, 401),
            (1_000_000, {}, 401),
        ]:
            with call(service, "POST", "/forward-sse", {**JSON, **fields}, big(size)) as stranger:
                assert stranger.read_head().status == expected
        is_done.set()
        reader.join()
    # What is measured is a tenth of it; other processes of the tests take their share.
    assert max(gaps) < 0.5


def test_a_wrong_passcode_is_refused_before_the_body(locked: tuple[Service, Upstream]) -> None:
    fields: dict[str, Any] = {**JSON, "X-Passcode": "wrong", "Content-Length": "1000"}
    with call(locked[0], "POST", "/forward-sse", fields) as client:
        assert client.read_head().status == 401


def test_with_the_passcode_in_a_field_a_body_may_be_long(locked: tuple[Service, Upstream]) -> None:
    service, there = locked
    there.script = OK
    document = json.dumps({"targetUrl": there.url, "body": "x" * 2_000_000}).encode()
    with call(service, "POST", "/forward-sse", {**JSON, "X-Passcode": "right"}, document) as client:
        assert client.read_head().status == 200
    refused = json.dumps({"passcode": "right", "body": "x" * 2_000_000}).encode()
    with call(service, "POST", "/forward-sse", JSON, refused) as client:
        assert client.read_head().status == 413
        assert "X-Passcode" in client.json()["detail"]


def test_bodies_of_a_locked_out_address_are_not_read() -> None:
    with Upstream(OK) as there:
        settings: dict[str, Any] = {
            "SSE_PASSCODES": {"me": "right"},
            "SSE_THROTTLE": "1000 per second",
            "SSE_TRUSTED_PROXIES": 1,
        }
        with Service(SSE_UPSTREAMS={"there": there.url}, **settings) as service:

            def ask(address: str, document: bytes) -> int:
                fields: dict[str, Any] = {**JSON, "X-Forwarded-For": address}
                with call(service, "POST", "/forward-sse", fields, document) as client:
                    return client.read_head().status

            # Each counts as a mebibyte, and ten of them are the limit.
            assert [ask("192.0.2.1", big(1_000_000)) for _ in range(11)] == [401] * 10 + [429]
            right = json.dumps({"targetUrl": there.url, "passcode": "right"}).encode()
            assert ask("192.0.2.1", right) == 429
            assert ask("192.0.2.2", right) == 200
            with call(
                service, "GET", "/upstream/there/", {"X-Forwarded-For": "192.0.2.1", "X-Passcode": "right"}
            ) as it:
                assert it.read_head().status == 200


@pytest.mark.parametrize(
    "document",
    [b"\xef\xbb\xbf" + b'{"targetUrl": "%s"}', b'{"targetUrl": " \\t%s\\r\\n "}'],
    ids=["byte order mark", "blanks"],
)
def test_a_bom_and_blanks_around_the_target_are_accepted(upstream: Callable[..., Upstream], document: bytes) -> None:
    app = Flask(__name__)
    there = upstream(OK)
    app.config["SSE_UPSTREAMS"] = {"there": there.url}
    SSE(app)
    with app.test_client().post("/forward-sse", data=document % there.url.encode(), headers=JSON) as response:
        assert response.status_code == 200


def test_a_number_beyond_all_bounds_is_refused(upstream: Callable[..., Upstream]) -> None:
    """It once went to the upstream as `Infinity`, which is no JSON."""
    app = Flask(__name__)
    there = upstream(OK)
    app.config["SSE_UPSTREAMS"] = {"there": there.url}
    SSE(app)
    body = b'{"targetUrl": "%s", "body": [1e400]}' % there.url.encode()
    assert app.test_client().post("/forward-sse", data=body, headers=JSON).status_code == 400
