"""The gateway in a site that exists: nothing of the site changes, nothing is global, only what is asked for comes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from flask_cors import CORS
from flask_limiter import Limiter

from sse import SSE

from .apps.example_site import caller, create_site, embed, nothing
from .support.ending import error_event
from .support.service import ROOT, Process, RawClient
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head, respond

#: Where the gateway's own endpoints are in the site.
OURS = ("/ai/", "/news")


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Flask]:
    """`site(embed, SSE_THROTTLE="")` makes the site, each with a database of its own."""
    count = iter(range(100))
    return lambda embed=nothing, **config: create_site(str(tmp_path / f"{next(count)}.sqlite"), embed, **config)


def named(value: Any) -> Any:
    """Return the same with functions and classes replaced by their names, for each app has functions of its own."""
    if isinstance(value, dict):
        return {str(key): named(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [named(entry) for entry in value]
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def anatomy(app: Flask) -> dict[str, Any]:
    """Return all that an extension could have changed of an app, without the gateway's routes and blueprints."""
    routes = [(rule.rule, rule.methods, rule.endpoint) for rule in app.url_map.iter_rules()]
    return {
        "hooks": {
            name: named(getattr(app, name).get(None, []))
            for name in (
                "before_request_funcs",
                "after_request_funcs",
                "teardown_request_funcs",
                "template_context_processors",
                "url_value_preprocessors",
                "url_default_functions",
            )
        },
        "handlers": named(app.error_handler_spec[None]),
        "others": named([app.teardown_appcontext_funcs, app.shell_context_processors, app.url_build_error_handlers]),
        "classes": named([app.request_class, app.response_class, app.json, app.session_interface, app.wsgi_app]),
        "jinja": [sorted(app.jinja_env.globals), sorted(app.jinja_env.filters), sorted(app.jinja_env.tests)],
        "config": {key: value for key, value in app.config.items() if not key.startswith("SSE_")},
        "extensions": sorted(set(app.extensions) - {"sse"}),
        "commands": sorted(set(app.cli.commands) - {"sse"}),
        "routes": [route for route in routes if not route[0].startswith(OURS)],
        "logging": [named(logging.getLogger(name).handlers) for name in (None, app.name, "sse", "werkzeug")],
        "levels": [logging.getLogger(name).level for name in (None, app.name, "sse", "werkzeug")],
    }  # fmt: skip


CALLS: list[tuple[str, str, dict[str, str]]] = [
    ("GET", "/private", {}),
    ("GET", "/login/ada", {}),
    ("GET", "/private", {}),
    ("GET", "/api/data", {}),
    ("GET", "/api/data", {"Origin": "https://friend.example"}),
    ("GET", "/api/data", {"Origin": "https://stranger.example"}),
    ("OPTIONS", "/api/data", {"Origin": "https://friend.example", "Access-Control-Request-Method": "PUT"}),
    ("GET", "/healthz", {"Origin": "https://friend.example"}),
    ("GET", "/limited", {}),
    ("GET", "/limited", {}),
    ("GET", "/limited", {}),
    ("GET", "/boom", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/nowhere", {"Origin": "https://friend.example", "X-Request-Id": "abc"}),
    ("GET", "/healthz?banned=1", {}),
    ("POST", "/healthz", {}),
    ("HEAD", "/api/data", {}),
    ("GET", "/static/nowhere.js", {}),
    ("GET", "/sse", {}),
    ("POST", "/forward-sse", {}),
    ("GET", "/visits", {}),
]


def answers(app: Flask) -> Iterator[dict[str, Any]]:
    """Yield what the site answers to each call, without what differs from second to second."""
    client = app.test_client()
    for method, path, fields in CALLS:
        with client.open(path, method=method, headers=fields) as response:
            seen = {name: value for name, value in response.headers.items() if name != "X-RateLimit-Reset"}
            if "Set-Cookie" in seen:
                seen["Set-Cookie"] = seen["Set-Cookie"].partition("=")[0]
            seen.pop("Retry-After", None)
            yield {"call": (method, path), "status": response.status, "fields": seen, "body": response.data}


def forward(client: FlaskClient, url: str = "http://upstream.test/", **fields: str) -> Any:
    return client.post("/ai/forward-sse", json={"targetUrl": url}, headers=fields)


def log_in(client: FlaskClient) -> FlaskClient:
    assert client.get("/login/ada").status_code == 200
    return client


def test_the_length_that_a_site_allows_is_not_ours(site: Callable[..., Flask]) -> None:
    client = log_in(site(embed, MAX_CONTENT_LENGTH=10).test_client())
    # No upstream covers it, which is found out when the body has been read.
    assert forward(client, "http://unused.example/").get_json()["code"] == "target_not_allowed"


def test_no_hook_handler_route_or_setting_of_the_site_is_changed(site: Callable[..., Flask]) -> None:
    assert anatomy(site(embed)) == anatomy(site())


def test_the_site_responds_to_everything_as_without(site: Callable[..., Flask]) -> None:
    with_it, without = list(answers(site(embed))), list(answers(site()))
    assert with_it == without
    # The calls show what they are meant to.
    seen = [call["status"][:3] for call in without]
    assert seen == "401 200 200 200 200 200 200 200 200 200 429 500 404 404 403 405 200 404 404 404 200".split()


def test_embedding_patches_nothing_and_starts_nothing() -> None:
    code = """
import logging, threading, socket, signal
before = socket.socket, threading.Thread, signal.getsignal(signal.SIGTERM), logging.root.handlers[:]
import sse, flask
for _ in range(3):
    sse.SSE(flask.Flask("a"), demonstration=True, playground=True, docs=True)
from gevent import monkey
assert not monkey.saved, monkey.saved
assert before == (socket.socket, threading.Thread, signal.getsignal(signal.SIGTERM), logging.root.handlers[:])
assert not logging.getLogger("sse").handlers
# The stores of limits start a timer that fires once.
for thread in threading.enumerate()[1:]:
    thread.join(1)
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


# What the gateway does in the site.


def test_who_is_logged_in_may_call_and_is_counted_by_name(
    site: Callable[..., Flask], upstream: Callable[..., Upstream], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse")
    there = upstream(respond(b"data: 1\n\n"))
    client = log_in(site(embed, SSE_UPSTREAMS={"there": there.url}).test_client())
    with forward(client, there.url) as response:
        assert response.data == b"data: 1\n\n"
    assert "end=complete status=200 upstream=there client=ada" in caplog.text


def test_a_stranger_is_refused_and_the_session_stays_here(
    site: Callable[..., Flask], upstream: Callable[..., Upstream]
) -> None:
    there = upstream()
    app = site(embed, SSE_UPSTREAMS={"there": there.url})
    refused = forward(app.test_client(), there.url)
    assert (refused.status_code, refused.json["code"]) == (401, "unauthenticated")
    with log_in(app.test_client()).get("/ai/upstream/there/x") as allowed:
        assert allowed.status_code == 200
    assert there.requests[0].field("Cookie") is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        pytest.param("POST", "/ai/forward-sse", b"{", 400, "invalid_request", id="400"),
        pytest.param("POST", "/ai/forward-sse", b'{"targetUrl":"http://a.b/"}', 403, "target_not_allowed", id="403"),
        pytest.param("GET", "/ai/upstream/unused/", None, 404, "not_found", id="404"),
        pytest.param("DELETE", "/ai/forward-sse", None, 405, "method_not_allowed", id="405"),
    ],
)
def test_site_error_pages_do_not_replace_refusals(
    site: Callable[..., Flask], method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    client = log_in(site(embed).test_client())
    response = client.open(path, method=method, data=body, content_type="application/json")
    refused: Any = response.json
    assert (response.status_code, refused["code"]) == (status, code)
    assert response.content_type == "application/problem+json"


def test_an_unknown_path_below_the_prefix_is_the_sites_404(site: Callable[..., Flask]) -> None:
    assert site(embed).test_client().get("/ai/nowhere").text == "the site: not here"


def test_the_sites_own_hooks_see_the_gateways_requests(site: Callable[..., Flask]) -> None:
    client = log_in(site(embed).test_client())
    assert forward(client).headers["X-Site"] == "of the site"
    assert client.post("/ai/forward-sse?banned=1").text == "the site: Forbidden"
    visits: Any = client.get("/visits").json
    assert ["/ai/forward-sse", 2] in visits


def test_an_own_stream_is_a_view_like_any(site: Callable[..., Flask]) -> None:
    client = site(embed).test_client()
    assert client.get("/news").text == "the site: log in first"
    with log_in(client).get("/news") as response:
        assert response.data.decode() == "".join(f'data: {{"number": {number}}}\n\n' for number in range(3))
        assert response.headers["X-Site"] == "of the site"


# Limits.


@pytest.mark.parametrize("config", [{}, {"RATELIMIT_ENABLED": False}, {"RATELIMIT_STRATEGY": "fixed-window"}], ids=str)
def test_the_gateways_throttle_is_its_own(site: Callable[..., Flask], config: dict[str, Any]) -> None:
    client = log_in(site(embed, SSE_THROTTLE="3 per hour", **config).test_client())
    assert [forward(client).status_code for _ in range(4)] == [403, 403, 403, 429]
    refused = forward(client)
    assert refused.json["code"] == "throttled"
    # The site's own count of two has not been touched.
    wanted = [200, 200, 200 if "RATELIMIT_ENABLED" in config else 429]
    assert [client.get("/limited").status_code for _ in range(3)] == wanted


def test_the_sites_default_limits_apply_to_routes_not_exempt(
    site: Callable[..., Flask],
) -> None:
    def exempt(app: Flask, limiter: Limiter) -> None:
        embed(app, limiter)
        relay: Any = app.blueprints["sse_relay"]
        limiter.exempt(relay)

    config = {"RATELIMIT_DEFAULT": "2 per hour"}
    client = log_in(site(embed, **config).test_client())
    assert [forward(client).status_code for _ in range(3)] == [403, 403, 429]
    assert forward(client).text == "the site: 2 per 1 hour"
    client = log_in(site(exempt, **config).test_client())
    assert [forward(client).status_code for _ in range(4)] == [403] * 4


def with_limiter(app: Flask, limiter: Limiter) -> None:
    SSE(app, url_prefix="/ai", authorize=caller, limiter=limiter)


@pytest.mark.parametrize(("enabled", "status"), [(True, 429), (False, 403)], ids=["enabled", "disabled"])
def test_a_given_site_limiter_keeps_the_counts(site: Callable[..., Flask], enabled: bool, status: int) -> None:
    app = site(with_limiter, SSE_THROTTLE="1 per hour", RATELIMIT_ENABLED=enabled, RATELIMIT_STRATEGY="moving-window")
    client = log_in(app.test_client())
    assert forward(client).status_code == 403
    refused = forward(client)
    assert refused.status_code == status
    assert refused.json["code"] in ("throttled", "target_not_allowed")


def test_clients_the_sites_limiter_exempts_are_not_counted(site: Callable[..., Flask]) -> None:
    def exempt(app: Flask, limiter: Limiter) -> None:
        limiter.request_filter(lambda: "X-Inside" in request.headers)
        with_limiter(app, limiter)

    client = log_in(site(exempt, SSE_THROTTLE="1 per hour").test_client())
    inside = {"X-Inside": "yes"}
    assert [forward(client, **fields).status_code for fields in (inside, inside, {}, {}, inside)] == [
        403, 403, 403, 429, 403
    ]  # fmt: skip


def test_the_sites_limiter_falls_back_to_memory(site: Callable[..., Flask]) -> None:
    def away(app: Flask, limiter: Limiter) -> None:
        def fail(*args: object, **options: object) -> bool:
            raise ConnectionError

        limiter.storage.incr = fail  # type: ignore[method-assign]  # a store that fails
        with_limiter(app, limiter)

    config = {"RATELIMIT_STRATEGY": "fixed-window", "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": True}
    client = log_in(site(away, SSE_THROTTLE="1 per hour", **config).test_client())
    refused = [forward(client) for _ in range(2)][1]
    assert (refused.status_code, refused.json["code"]) == (429, "throttled")


# CORS.


def test_scripts_of_the_gateways_origins_may_read(site: Callable[..., Flask]) -> None:
    client = log_in(site(embed, SSE_CORS_ORIGINS=["https://front.example"]).test_client())
    for origin, allowed in [("https://front.example", "https://front.example"), ("https://friend.example", None)]:
        assert forward(client, Origin=origin).headers.get("Access-Control-Allow-Origin") == allowed
    asked = {"Origin": "https://front.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/ai/forward-sse", headers=asked)
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://front.example"
    assert "Access-Control-Allow-Credentials" not in preflight.headers


def test_the_sites_cors_for_all_routes_covers_the_gateways(site: Callable[..., Flask]) -> None:
    """Flask-CORS replaces what is there; a stranger's script gets the gateway's "*", which never goes with cookies."""

    def with_cors(app: Flask, limiter: Limiter) -> None:
        CORS(app, origins=["https://friend.example"], supports_credentials=True)
        embed(app, limiter)

    client = log_in(site(with_cors).test_client())
    friend = forward(client, Origin="https://friend.example").headers
    stranger = forward(client, Origin="https://stranger.example").headers
    assert friend.getlist("Access-Control-Allow-Origin") == ["https://friend.example"]
    assert stranger.getlist("Access-Control-Allow-Origin") == ["*"]
    assert "Access-Control-Allow-Credentials" not in stranger


# Parts and apps.


#: Neither the relay nor the browser client.
ALONE = {"relay": False, "client": False}


@pytest.mark.parametrize(
    ("parts", "config", "paths"),
    [
        pytest.param({"client": False}, {}, {"/forward-sse", "/upstream/<path:target>", "/streams/<id>"}, id="relay"),
        pytest.param(ALONE, {}, set(), id="own-streams-alone"),
        pytest.param({"relay": False}, {}, {"/sse-static/<name>"}, id="browser-client"),
        pytest.param({**ALONE, "demonstration": True}, {}, {"/sse", "/hackathon/sse"}, id="demonstration"),
        pytest.param(ALONE, {"SSE_METRICS": True}, {"/metrics"}, id="metrics"),
        pytest.param({**ALONE, "docs": True}, {}, {"/openapi.json", "/docs", "/docs/<name>"}, id="docs"),
        pytest.param({**ALONE, "playground": True}, {}, {"/", "/sse-static/<name>", "/playground.json"}, id="page"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/ai"])
def test_only_the_chosen_parts_are_there(parts: Any, config: dict[str, Any], paths: set[str], prefix: str) -> None:
    app = Flask(__name__, static_folder=None)
    app.config.from_mapping(config)
    SSE(app, url_prefix=prefix, **parts)
    assert {rule.rule for rule in app.url_map.iter_rules()} == {prefix + path for path in paths}


def test_one_instance_serves_many_apps_that_share_nothing(upstream: Callable[..., Upstream]) -> None:
    there = upstream(respond(b"data: 1\n\n"))
    sse = SSE(url_prefix="/ai")
    one, two = Flask("one"), Flask("two")
    one.config.from_mapping(SSE_UPSTREAMS={"there": there.url}, SSE_PASSCODES={"ada": "of one"})
    two.config.from_mapping(SSE_THROTTLE="1 per hour")
    for app in (one, two):
        sse.init_app(app)
    assert forward(one.test_client(), there.url).status_code == 401
    with forward(one.test_client(), there.url, **{"X-Passcode": "of one"}) as response:
        assert response.data == b"data: 1\n\n"
        assert len(one.extensions["sse"].monitor) == 1
        assert len(two.extensions["sse"].monitor) == 0
    # What is not allowed there, and used up there, is neither here.
    assert [forward(two.test_client(), there.url).status_code for _ in range(2)] == [403, 429]
    assert forward(one.test_client(), there.url, **{"X-Passcode": "of one"}).status_code == 200


def test_an_app_that_has_one_refuses_another_and_stays_as_it_is() -> None:
    app = Flask(__name__)
    sse = SSE(app)
    before, state = anatomy(app), app.extensions["sse"]
    for again in (lambda: sse.init_app(app), lambda: SSE(app, url_prefix="/other", playground=True)):
        with pytest.raises(RuntimeError, match="has an SSE already"):
            again()
    assert (anatomy(app), app.extensions["sse"]) == (before, state)


def test_a_wrong_setting_leaves_the_app_as_it_was() -> None:
    app = Flask(__name__)
    app.config["SSE_HEARTBEAT"] = "often"
    before = anatomy(app)
    with pytest.raises(ValueError, match="SSE_HEARTBEAT"):
        SSE(app)
    assert anatomy(app) == before
    assert "sse" not in app.extensions


# Without gevent: Flask's own server, with threads.


@pytest.fixture
def flask_run(tmp_path: Path) -> Iterator[Callable[..., tuple[Process, int]]]:
    """`flask_run(there)` runs the site with an upstream by `flask run`."""
    started: list[Process] = []

    def start(there: Upstream) -> tuple[Process, int]:
        ours = {"SITE_DATABASE": str(tmp_path / "site.sqlite"), "FLASK_SSE_UPSTREAMS": json.dumps({"there": there.url})}
        environment = {**os.environ, **ours, "PYTHONUNBUFFERED": "1"}
        arguments = ["--app", "tests.apps.example_site:create_embedded", "run", "--port", "0"]
        started.append(Process([sys.executable, "-m", "flask", *arguments], env=environment, cwd=ROOT))
        return started[-1], int(started[-1].wait_log(r"Running on http://127\.0\.0\.1:(\d+)")[1])

    yield start
    for process in started:
        process.stop()


def log_in_at(port: int) -> str:
    with RawClient("127.0.0.1", port) as client:
        client.request("GET", "/login/ada")
        cookie = client.read_head().field("Set-Cookie")
    assert cookie is not None
    return cookie.partition(";")[0]


def ask_upstream(port: int, cookie: str) -> RawClient:
    client = RawClient("127.0.0.1", port)
    client.request("GET", "/ai/upstream/there/feed", {"Cookie": cookie})
    return client


def test_under_flask_run_the_relay_passes_events_as_they_come(
    flask_run: Callable[..., tuple[Process, int]], upstream: Callable[..., Upstream]
) -> None:
    arrived = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: 1\n\n"))
        connection.wait_for(arrived)
        connection.send(chunk(b"data: 2\n\n") + LAST_CHUNK)

    there = upstream(script)
    _, port = flask_run(there)
    with ask_upstream(port, log_in_at(port)) as client:
        client.read_until(b"data: 1\n\n")
        arrived.set()
        assert client.read_body() == b"data: 1\n\ndata: 2\n\n"
    assert client.is_complete


def test_under_flask_run_a_leaving_client_closes_the_upstream(
    flask_run: Callable[..., tuple[Process, int]], upstream: Callable[..., Upstream]
) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: 1\n\n"))
        connection.wait_closed()

    there = upstream(script)
    _, port = flask_run(there)
    with ask_upstream(port, log_in_at(port)) as client:
        client.read_until(b"data: 1\n\n")
    there.connections[0].wait_closed(2)


def test_under_flask_run_truncation_aborts_the_response(
    flask_run: Callable[..., tuple[Process, int]], upstream: Callable[..., Upstream]
) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: 1\n\n"))

    there = upstream(script)
    _, port = flask_run(there)
    with ask_upstream(port, log_in_at(port)) as client:
        assert client.read_body() == b"data: 1\n\n" + error_event("upstream_truncated")
    assert client.ending == "aborted"
