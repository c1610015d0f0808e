"""The document at `/openapi.json` says what the service does, and the page at `/docs` shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import requests
import schemathesis
from flask import Flask

from sse import SSE
from sse.demo.server import DemonstrationServer
from sse.errors import REFUSALS, ClientGone

from ..support.page import faults, opened
from ..support.program import program
from ..support.service import ROOT, Service, call

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PASSCODE = "a long random text"

#: Seconds that schemathesis may take; it takes about five.
PATIENCE = 60

#: The endpoints that there are in the whole service.
PATHS = {"/forward-sse", "/upstream/{name}/{path}", "/streams/{id}", "/sse", "/metrics"}


@dataclass(frozen=True, kw_only=True)
class Documented:
    """A service, and the demonstration that is behind it."""

    service: Service
    demonstration: str


@pytest.fixture(scope="module")
def documented() -> Iterator[Documented]:
    """A service with passcodes, and a demonstration that does not dawdle; a path cannot have slashes in OpenAPI."""
    demonstration = DemonstrationServer(delay=0.0001)
    demonstration.ensure_started()
    url = demonstration.url
    upstreams = {"demo": url, "v1": f"{url}v1/", "chat": f"{url}v1/chat/"}
    settings: dict[str, Any] = {"SSE_UPSTREAMS": upstreams, "SSE_PASSCODES": {"docs": PASSCODE}, "SSE_METRICS": True}
    with Service("--keep-alive", "1", SSE_THROTTLE="", **settings) as service:
        yield Documented(service=service, demonstration=url)
    demonstration.close()


def document_of(app: Flask, path: str = "/openapi.json") -> Any:
    return app.test_client().get(path).get_json()


def app_with(url_prefix: str = "", **config: Any) -> Flask:
    """Return an app with the relay and the document in it."""
    app = Flask(__name__)
    app.config.update({"SSE_UPSTREAMS": {"demo": "https://demo.example/"}, **config})
    SSE(app, url_prefix=url_prefix, docs=True)
    return app


# What schemathesis says


def test_schemathesis_finds_no_difference(documented: Documented, tmp_path: Path) -> None:
    """A stream that does not end is left out here; see the next test."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{documented.service.url}/openapi.json"]
    options = ["--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--generation-deterministic"]
    bounds = ["--request-timeout", "5", "--exclude-operation-id", "ticks_get", "--continue-on-failure", "--no-color"]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.web.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
        "DEMONSTRATION": documented.demonstration,
    }
    done = subprocess.run(
        [*command, *options, *bounds, "--header", f"Authorization: Bearer {PASSCODE}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reached = documented.service.log()
    for name in ("demo", "chat", "v1"):
        assert f"status=200 upstream={name} " in reached, f"no valid call has reached {name}"


def test_the_endless_stream_is_as_documented(documented: Documented) -> None:
    url = documented.service.url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    with requests.get(f"{url}/sse", headers={"Last-Event-ID": "41"}, stream=True, timeout=5) as response:
        first = response.raw.read1(65536, decode_content=False)
        response._content = first
        schema["/sse"]["GET"].Case().validate_response(response)
    assert first.startswith(b"id: 42\n")


# What it lists


def test_every_refusal_that_somebody_can_read_is_listed(documented: Documented) -> None:
    with call(documented.service, "GET", "/openapi.json") as client:
        document = client.json()
    # The service has no channels.
    site = Flask(__name__)
    SSE(site, relay=False, channels=lambda request, channel: True, docs=True)
    schemas = [
        response["content"]["application/problem+json"]["schema"]
        for operations in (*document["paths"].values(), *document_of(site)["paths"].values())
        for method, operation in operations.items()
        if method != "parameters"
        for response in operation["responses"].values()
        if "application/problem+json" in response.get("content", {})
    ]
    listed = {code for schema in schemas for code in schema["allOf"][1]["properties"]["code"]["enum"]}
    assert listed == {refusal.code for refusal in REFUSALS if refusal is not ClientGone}


def test_it_lists_only_what_is_registered(documented: Documented) -> None:
    with call(documented.service, "GET", "/openapi.json") as client:
        assert set(client.json()["paths"]) == PATHS
    assert set(document_of(app_with())["paths"]) == {"/forward-sse", "/upstream/{name}/{path}", "/streams/{id}"}


def test_it_says_below_which_path_all_is_served() -> None:
    assert document_of(app_with("/ai"), "/ai/openapi.json")["servers"] == [{"url": "/ai"}]
    assert document_of(app_with())["servers"] == [{"url": "/"}]


def test_it_names_the_ways_of_a_passcode_where_one_is_wanted() -> None:
    document = document_of(app_with(SSE_PASSCODES={"a": PASSCODE}))
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    assert document["paths"]["/forward-sse"]["post"]["security"] == [{"bearer": []}, {"field": []}, {}]
    assert document["paths"]["/upstream/{name}/{path}"]["get"]["security"] == [{"bearer": []}, {"field": []}]
    assert "passcode" in document["components"]["schemas"]["ForwardRequest"]["properties"]


def test_an_open_gateway_asks_for_nothing() -> None:
    document = document_of(app_with())
    assert document["components"]["securitySchemes"] == {}
    assert document["paths"]["/forward-sse"]["post"]["security"] == []
    assert "401" not in document["paths"]["/forward-sse"]["post"]["responses"]


def test_it_shows_no_secret() -> None:
    upstreams = {"demo": {"url": "https://demo.example/hidden/", "headers": {"Authorization": "Bearer sk-secret"}}}
    document = document_of(app_with(SSE_PASSCODES={"a": PASSCODE}, SSE_UPSTREAMS=upstreams))
    shown = json.dumps(document)
    assert [secret for secret in (PASSCODE, "sk-secret", "demo.example") if secret in shown] == []


def test_nothing_is_served_unless_it_was_asked_for() -> None:
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"demo": "https://demo.example/"}
    SSE(app)
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/openapi.json", "/docs", "/docs/docs.css")] == [404, 404, 404]


# The page


def test_the_page_shows_every_endpoint_by_files_of_our_own(documented: Documented, chromium: Browser) -> None:
    asked: list[str] = []
    # A violation of the policy, or an error in the console, fails the test.
    with opened(chromium) as page:
        page.on("request", lambda request: asked.append(request.url))
        response = page.goto(f"{documented.service.url}/docs")
        assert response is not None
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        shown = {element.get_attribute("data-path") for element in page.query_selector_all("[data-path]")}
        assert shown == PATHS
        page.click("#forward summary")
        page.wait_for_selector("#forward >> text=upstream_unreachable")
        assert page.locator("#forward td >> text=absolute http(s) URL").is_visible()
        assert {url for url in asked if not url.startswith((documented.service.url, "data:"))} == set()


def test_success_stands_first_and_operations_are_grouped(documented: Documented, chromium: Browser) -> None:
    with opened(chromium) as page:
        page.goto(f"{documented.service.url}/docs")
        for table in page.locator("details").all():
            statuses = [cell.text_content() or "" for cell in table.locator("table").last.locator("tbody th").all()]
            assert statuses[0][0] == "2" and len(statuses) > 1 or statuses == ["200"]
        titles = page.locator("section h2").all_inner_texts()
        assert titles == ["Relay", "Recordings", "Demonstration", "Operation", "Header fields of responses"]


def test_streams_are_tried_on_the_page(documented: Documented, chromium: Browser) -> None:
    """An explorer that waits for the end of a stream that has none waits for ever."""
    with opened(chromium) as page:
        page.goto(f"{documented.service.url}/docs")
        page.click("#ticks_get summary")
        page.click("#ticks_get a")
        page.wait_for_selector("body[data-ready]")
        assert page.url == f"{documented.service.url}/?example=ticks"
        assert page.is_visible("#send")
        page.goto(f"{documented.service.url}/docs")
        assert page.locator("button, form, script").count() == 0


def test_without_the_page_nothing_leads_to_it() -> None:
    html = app_with("/ai").test_client().get("/ai/docs").get_data(as_text=True)
    assert "Try it" not in html and 'href="openapi.json"' in html


@pytest.fixture(scope="module")
def open_service() -> Iterator[Service]:
    """A service as it is without any setting, behind a throttle that is off."""
    with Service("--keep-alive", "1", SSE_THROTTLE="", SSE_METRICS=True) as service:
        yield service


def test_every_example_works(open_service: Service) -> None:
    program("curl", "curl")
    with call(open_service, "GET", "/openapi.json") as client:
        document = client.json()
    answers = {}
    for entry in document["paths"].values():
        for method, operation in entry.items():
            if method != "parameters":
                command = ["bash", "-c", operation["x-example"].replace("curl", "curl -s -i", 1)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
                answers[operation["operationId"]] = done.stdout
    expected = {name for name in answers if name not in REFUSED_BY_DEMO and not name.startswith("stream_")}
    assert all(answers[name].startswith("HTTP/1.1 200") for name in expected)
    # The id stands for one that `Location` has named.
    assert all("HTTP/1.1 404" in answers[name] for name in answers if name.startswith("stream_"))
    assert all("X-Upstream-Status: 404" in answers[name] for name in REFUSED_BY_DEMO)
    assert answers["forward"].rstrip().endswith("data: [DONE]") and answers["upstream_post"].rstrip().endswith("[DONE]")
    assert answers["ticks_get"].count("data: Message") > 5


#: Methods that are relayed, and that the demonstration has nothing for.
REFUSED_BY_DEMO = {"upstream_put", "upstream_patch", "upstream_delete"}


def test_upstreams_are_named_to_those_who_may_call_them(documented: Documented) -> None:
    for path in ("/openapi.json", "/docs"):
        for fields, is_known in (({}, False), ({"X-Passcode": "wrong"}, False), ({"X-Passcode": PASSCODE}, True)):
            with call(documented.service, "GET", path, fields) as client:
                assert (b"chat" in client.read_body().replace(b"v1/chat/completions", b"")) == is_known, (path, fields)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    documented: Documented, chromium: Browser, js_modules: Path, scheme: Literal["light", "dark"]
) -> None:
    with opened(chromium, color_scheme=scheme) as page:
        page.goto(f"{documented.service.url}/docs")
        ground = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        assert ground == {"light": "rgb(233, 239, 237)", "dark": "rgb(11, 17, 18)"}[scheme]
        page.evaluate("() => document.querySelectorAll('details').forEach((details) => (details.open = true))")
        assert faults(page, (js_modules / "axe-core/axe.min.js").read_text()) == []


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window(documented: Documented, chromium: Browser, width: int) -> None:
    with opened(chromium, viewport={"width": width, "height": 900}) as page:
        page.goto(f"{documented.service.url}/docs")
        page.evaluate("() => document.querySelectorAll('details').forEach((details) => (details.open = true))")
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
