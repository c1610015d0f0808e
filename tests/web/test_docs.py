"""The document at `/openapi.json` says what the service does, and the page at `/docs` shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from flask import Flask

from sse import SSE
from sse.demo.server import DemonstrationServer
from sse.errors import REFUSALS, ClientGone

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
    schemas = [
        response["content"]["application/problem+json"]["schema"]
        for operations in document["paths"].values()
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
    assert [client.get(path).status_code for path in ("/openapi.json", "/docs", "/docs/docs.js")] == [404, 404, 404]


# The page


def test_the_page_shows_every_endpoint_by_files_of_our_own(documented: Documented, chromium: Browser) -> None:
    context = chromium.new_context()
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    # Before any script of the page, so that no violation is missed.
    page.add_init_script(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));"
    )
    response = page.goto(f"{documented.service.url}/docs")
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    page.wait_for_selector(".opblock")
    shown = {element.get_attribute("data-path") for element in page.query_selector_all("[data-path]")}
    assert shown == PATHS
    # One is opened, for most of what Swagger UI draws is inside.
    page.click("[data-path='/forward-sse']")
    page.wait_for_selector("text=upstream_unreachable")
    assert page.evaluate("violations") == []
    assert said == []
    assert {url for url in asked if not url.startswith((documented.service.url, "data:", "blob:"))} == set()
    context.close()
