"""What README.md says is so: each block of it is run, each table compared with the code."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.metrics import MetricWrapperBase

from sse.errors import REFUSALS, ClientGone
from sse.relay.stream.end import EndReason
from sse.settings import PREFIX, Settings
from sse.web.metrics import Metrics

from .benchmark.table import COLUMNS
from .support.dialect import speak
from .support.program import program
from .support.relay import Relay
from .support.service import ROOT, Process, Service, call
from .support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, answer, chunk, head

if TYPE_CHECKING:
    from playwright.sync_api import Browser

README = (ROOT / "README.md").read_text()

#: A block, and the name of the test that runs it: `test_<name>` below.
BLOCK = re.compile(r"(?:^<!-- (?:test: )?([\w ]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Where the README says that the service listens, and Ollama.
HERE, OLLAMA = "http://127.0.0.1:8000", "http://127.0.0.1:11434"

PASSCODE = "a long random text"

#: Seconds that a block may take.
PATIENCE = 20


def blocks() -> dict[str, str]:
    """Return the text of each block by its name."""
    return {str(name).replace(" ", "_"): text for name, _, text in BLOCK.findall(README)}


def table(first: str) -> list[list[str]]:
    """Return the cells of the rows of the table whose first heading is that."""
    lines = README[README.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def test_each_block_has_a_test() -> None:
    """A block without a name, or with one that no test has, is one that nobody has run."""
    assert len(blocks()) == README.count("\n```") // 2, "two blocks have one name, or a block has none"
    assert [name for name in blocks() if f"test_{name}" not in globals()] == []


# Run it


def clean_environment(**extra: str) -> dict[str, str]:
    """Return our environment, with this Python's programs first, and without what would configure the service."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"FLASK_|SSE_|HOST$|PORT$", name)}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **extra}


def test_command_one() -> None:
    assert blocks()["command_one"] == "pip install -r requirements.txt && gunicorn app:app\n"
    command = [sys.executable, "-m", "gunicorn", "--print-config", "app:app"]
    told = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert re.search(r"^bind\s+= \['127\.0\.0\.1:8000'\]$", told.stdout, re.MULTILINE), told.stdout + told.stderr


def test_command_two() -> None:
    assert blocks()["command_two"] == "pip install -r tests/requirements.txt && pytest\n"
    assert "<!-- command two -->" in (ROOT / ".ci/run").read_text(), "CI takes it from the README"


@contextmanager
def started(name: str) -> Iterator[str]:
    """Run a block that starts the service, on a port of the kernel's choice, and return the service's URL."""
    text = blocks()[name]
    assert text.endswith("\ngunicorn app:app\n")
    script = text.replace("\ngunicorn", "\nexec gunicorn")
    with Process(["bash", "-euc", script], env=clean_environment(PORT="0")) as process:
        yield process.wait_log(r"Listening at: (http://\S+)")[1]


def test_service() -> None:
    with started("service") as url:
        told = httpx.get(f"{url}/playground.json", headers={"X-Passcode": "a long random text"}).json()
    assert (told["upstreams"], told["open"]) == (["deepseek"], False)


# Embed it


def test_embed(upstream: Callable[..., Upstream]) -> None:
    ollama = upstream(answer(b"data: hello\n\n"))
    site: dict[str, Any] = {"__name__": __name__}
    exec(blocks()["embed"].replace(OLLAMA, ollama.url), site)
    client = site["app"].test_client()
    assert client.post("/ai/upstream/ollama/api/chat").get_json()["code"] == "unauthenticated"
    assert client.post("/ai/upstream/ollama/api/chat", headers={"X-User": "ann"}).data == b"data: hello\n\n"
    assert len(blocks()["embed"].splitlines()) <= 8


def test_restart(tmp_path: Path) -> None:
    """The site has the block, and nothing else of this project's own configuration."""
    (tmp_path / "app.py").write_text(
        "import time\nfrom flask import Flask\nfrom sse import SSE, EventSourceResponse\n"
        "app = Flask(__name__)\nSSE(app)\n"
        "app.add_url_rule('/healthz', view_func=lambda: 'ok')\n"
        "app.add_url_rule('/own', 'own', lambda: EventSourceResponse('a' for _ in iter(lambda: time.sleep(0.1), 1)))\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text(blocks()["restart"])
    path = {"PYTHONPATH": str(ROOT)}
    with Service("--graceful-timeout", "5", root=tmp_path, env=path) as service, call(service, "GET", "/own") as client:
        client.read_until(b"data: a\n\n")
        service.terminate()
        assert client.read_body().endswith(b'data: {"code": "draining"}\n\n')
        assert service.wait_exit() == 0


def test_own_streams() -> None:
    site: dict[str, Any] = {"__name__": __name__}
    exec(blocks()["own_streams"], site)
    answer = site["app"].test_client().get("/count", headers={"Last-Event-ID": "7"})
    assert answer.mimetype == "text/event-stream"
    assert answer.data == b"".join(b"id: %d\ndata: event %d\n\n" % (n, n) for n in (8, 9, 10))


# Read it in a browser


def test_browser(chromium: Browser, shared_service: Service, upstream: Callable[..., Upstream]) -> None:
    html = blocks()["browser"].replace(HERE, shared_service.url).encode()
    # Really served: for Chromium, a page that a test makes up is not local, and may not call what is.
    site = upstream(answer(html, fields=["Content-Type: text/html"], framing="length"))
    page = chromium.new_page()
    with page.expect_console_message(lambda message: message.text == "all of it came", timeout=PATIENCE * 1000):
        page.goto(site.url)
    page.close()


# As the base URL of an SDK


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A service with the README's upstreams, of which each is the same stand-in."""

    service: Service
    upstream: Upstream

    def text(self, name: str) -> str:
        """Return a block that calls this service."""
        return blocks()[name].replace(HERE, self.service.url)


@pytest.fixture(scope="module")
def whole_stage() -> Iterator[Stage]:
    """The README's table: paths and keys as they are, and instead of each host our own."""
    exported = re.search(r"FLASK_SSE_UPSTREAMS='(.*?)'", blocks()["upstreams"], re.DOTALL)
    passcodes = re.search(r"FLASK_SSE_PASSCODES='(.*?)'", blocks()["upstreams"], re.DOTALL)
    assert exported and passcodes
    with Upstream() as upstream:
        upstreams = json.loads(re.sub(r"https?://[^/\"]+", upstream.url, exported[1]))
        settings = {"SSE_UPSTREAMS": upstreams, "SSE_PASSCODES": json.loads(passcodes[1])}
        with Service("--keep-alive", "1", **settings) as service:
            yield Stage(service=service, upstream=upstream)


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    whole_stage.upstream.script = speak("Hello", ", ", "world")
    yield whole_stage
    whole_stage.upstream.settle()


def run_python(text: str) -> str:
    """Return what a block prints."""
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_upstreams() -> None:
    with started("upstreams") as url:
        told = httpx.get(f"{url}/playground.json", headers={"X-Passcode": "a long random text"}).json()
    assert (told["upstreams"], told["open"]) == (["anthropic", "deepseek", "ollama", "openai", "tongyi"], False)


@pytest.mark.parametrize(
    ("api", "target", "key"),
    [
        ("OpenAI", "/v1/chat/completions", "Bearer sk-..."),
        ("DeepSeek", "/chat/completions", "Bearer sk-..."),
        ("Tongyi, compatible", "/compatible-mode/v1/chat/completions", "Bearer sk-..."),
        ("Ollama", "/v1/chat/completions", None),
    ],
)
def test_openai(stage: Stage, api: str, target: str, key: str | None) -> None:
    rows = {row[0]: row[1:] for row in table("API")}
    assert len(rows) == 4
    base_url, model = (codes(cell)[0] for cell in rows[api])
    example_url, example_model = (codes(cell)[0] for cell in rows["OpenAI"])
    text = blocks()["openai"].replace(f'"{example_url}"', f'"{base_url}"').replace(example_model, model)
    assert run_python(text.replace(HERE, stage.service.url)) == "Hello, world"
    request = stage.upstream.wait_request()
    assert (request.target, request.field("Authorization")) == (target, key)
    assert json.loads(request.body)["model"] == model


def test_openai_js(stage: Stage, node_modules: Path) -> None:
    script = node_modules / "readme.mjs"
    script.write_text(stage.text("openai_js"))
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("Hello, world", "")


def test_dashscope(stage: Stage) -> None:
    assert run_python(stage.text("dashscope")) == "Hello, world"
    request = stage.upstream.wait_request()
    assert request.target == "/api/v1/services/aigc/text-generation/generation"
    assert request.field("Authorization") == "Bearer sk-..."


def test_dashscope_forward(stage: Stage) -> None:
    told = run_curl(stage.text("dashscope_forward").replace("https://dashscope.aliyuncs.com", stage.upstream.url))
    assert told.count("event:result") == 3
    request = stage.upstream.wait_request()
    assert (request.field("X-DashScope-SSE"), request.field("Authorization")) == ("enable", "Bearer sk-...")
    assert PASSCODE.encode() not in request.head + request.body


def test_anthropic(stage: Stage) -> None:
    assert run_python(stage.text("anthropic")) == "Hello, world"
    request = stage.upstream.wait_request()
    assert (request.target, request.field("X-Api-Key")) == ("/v1/messages", "sk-ant-...")
    assert PASSCODE not in request.head.decode()


# Endpoints


def run_curl(text: str) -> str:
    """Return what a block that calls curl prints."""
    program("curl", "curl")
    done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forward(relay: Relay) -> None:
    relay.upstream.script = answer(
        b'{"message": {"content": "Hello"}}\n', fields=["Content-Type: application/x-ndjson"]
    )
    text = blocks()["forward"].replace(HERE, relay.service.url).replace(OLLAMA, relay.upstream.url)
    assert run_curl(text) == '{"message": {"content": "Hello"}}\n'
    assert relay.upstream.wait_request().target == "/api/chat"


def test_the_endpoints_are_there(service: Callable[..., Service]) -> None:
    running = service(SSE_METRICS=True)
    for endpoint in (code for row in table("endpoint") for code in codes(row[0])):
        method, path = endpoint.split(" ")
        with call(running, method.replace("ANY", "GET"), path.replace("<name>/<path>", "demo/v1/models")) as client:
            assert client.read_head().status not in (404, 405), endpoint


def test_the_refusals_are_those_of_the_code() -> None:
    told = {
        (status, code)
        for row in table("status")
        for statuses, named in [(row[0].split(", "), codes(row[1]))]
        for status, code in zip(statuses if len(statuses) > 1 else statuses * len(named), named, strict=True)
    }
    assert told == {(str(refusal.status), refusal.code) for refusal in REFUSALS if refusal is not ClientGone}


def test_the_end_reasons_are_those_of_the_code() -> None:
    section = README[README.index("### How a stream ends") :].split("\n\n")[1]
    told = codes(section[: section.index(". A truncated")])
    # The other two end no stream: then there was none, and the answer says why.
    assert set(told) == set(EndReason) - {EndReason.UPSTREAM_FAILED, EndReason.UPSTREAM_TIMEOUT}


def test_doctor(shared_service: Service) -> None:
    text = blocks()["doctor"].replace("https://relay.example.com", shared_service.url)
    # With as many streams as any machine has file descriptors for.
    environment = clean_environment(FLASK_SSE_MAX_STREAMS="100")
    done = subprocess.run(
        ["bash", "-euc", text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{shared_service.url}/sse: its events come one by one" in done.stdout


# Watch it


def test_the_metrics_are_those_of_the_code() -> None:
    told = {name: codes(row[1]) for row in table("metric") for name in codes(row[0])}
    kept: dict[str, list[str]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            kept[family.name + ("_total" if family.type == "counter" else "")] = list(metric._labelnames)
    assert told == kept


def test_the_log_lines_are_those_of_the_code(relay: Relay) -> None:
    told = [line.split() for line in re.findall("^    (stream .*|refused .*)$", README, re.MULTILINE)]
    for script, target in ((answer(b"data: a\n\n"), "test/"), (answer(), "nowhere/")):
        relay.upstream.script = script
        with call(relay.service, "GET", f"/upstream/{target}", {"X-Request-Id": "readme"}) as client:
            client.read_body()
        start = relay.service.wait_log(f"{'stream' if target == 'test/' else 'refused'} .*request_id=readme$")
        names = [pair.partition("=")[0] for pair in start[0].split()]
        assert names in [[pair.partition("=")[0] for pair in line] for line in told]


def test_json_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("sse")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    exec(blocks()["json_log"], {})
    log.info("said", extra={"request_id": "1"})
    told = json.loads(capsys.readouterr().err)
    assert (told["message"], told["request_id"]) == ("said", "1")


def test_traced(upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    """The trace goes through: the client's, the gateway's two spans, the upstream."""
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: a\n\n"))
        connection.wait_for(go)
        connection.send(LAST_CHUNK)

    (tmp_path / "traced.py").write_text(blocks()["traced"])
    server = upstream(script)
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    env = {"PYTHONPATH": str(tmp_path), "OTEL_BSP_SCHEDULE_DELAY": "50", **exporters}
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=1", "baggage": "y=2"}
    with Service(app="traced:app", env=env, SSE_UPSTREAMS={"test": server.url}) as service:
        with call(service, "GET", "/upstream/test/", parent) as client:
            client.read_until(b"data: a\n\n")
            request = server.wait_request()
            # Both spans have ended while the stream goes on.
            service.wait_log(r'(?s)"SpanKind.CLIENT".*"SpanKind.SERVER".*^}$')
            go.set()
            client.read_body()
        assert client.is_complete
        assert "MonkeyPatchWarning" not in service.log()
        found = [json.loads(text) for text in re.findall(r"^\{$.*?^\}$", service.log(), re.MULTILINE | re.DOTALL)]
    version, trace, span, _ = (request.field("traceparent") or "").split("-")
    assert (version, trace) == ("00", "a" * 32)
    assert (request.field("tracestate"), request.field("baggage")) == ("x=1", "y=2")
    ours = {each["kind"]: each for each in found if each["context"]["trace_id"] == f"0x{trace}"}
    assert set(ours) == {"SpanKind.SERVER", "SpanKind.CLIENT"}
    server_span, client_span = ours["SpanKind.SERVER"], ours["SpanKind.CLIENT"]
    assert server_span["parent_id"] == "0x" + "b" * 16
    assert client_span["parent_id"] == server_span["context"]["span_id"]
    assert client_span["context"]["span_id"] == f"0x{span}"


# Deploy

#: What stands in the way of a machine: the venv and what it would download, and systemd.
STUBS = {
    "python3": '#!/bin/sh\ntest "$*" = "-m venv venv" && mkdir -p venv/bin && cp "$0" venv/bin/gunicorn && '
    'cp "$(dirname "$0")/pip" venv/bin/pip\n',
    "pip": '#!/bin/sh\ntest -f "$3"\n',
    "systemctl": '#!/bin/sh\necho "systemctl $*"\n',
}


def test_systemd(tmp_path: Path) -> None:
    """The files come to where the unit expects them, and the settings are some with which the service starts."""
    checkout, stubs, etc = tmp_path / "checkout", tmp_path / "stubs", tmp_path / "etc"
    for directory in (stubs, etc / "systemd/system", tmp_path / "opt"):
        directory.mkdir(parents=True)
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    shutil.copy(ROOT / "requirements.txt", checkout)
    for name, text in STUBS.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    script = re.sub(r"(?<= )/(?=opt|etc)", f"{tmp_path}/", blocks()["systemd"])
    env = clean_environment(PATH=f"{stubs}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "-euc", script], cwd=checkout, env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "systemctl enable --now flask-sse-relay.socket flask-sse-relay.service\n"
    unit = (etc / "systemd/system/flask-sse-relay.service").read_text()
    assert (etc / "systemd/system/flask-sse-relay.socket").exists()
    for key in ("ExecStart", "LoadCredential"):
        found = re.search(rf"^{key}=[^/]*(/\S+)", unit, re.MULTILINE)
        assert found and (tmp_path / found[1][1:]).exists(), key
    settings = etc / "flask-sse-relay.toml"
    assert settings.stat().st_mode & 0o777 == 0o600
    env = clean_environment(PORT="0", SSE_CONFIG=str(settings))
    with Process([sys.executable, "-m", "gunicorn", "app:app"], env=env) as process:
        url = process.wait_log(r"Listening at: (http://\S+)")[1]
        told = httpx.get(f"{url}/playground.json", headers={"X-Passcode": "a long random text"}).json()
    assert (told["upstreams"], told["open"]) == (["deepseek"], False)


# Settings


def test_the_settings_are_those_of_the_code() -> None:
    assert [codes(row[0])[0] for row in table("key")] == [PREFIX + known.name.upper() for known in fields(Settings)]


def test_the_defaults_are_those_of_the_code() -> None:
    defaults = Settings()
    for key, default, _ in table("key"):
        value = getattr(defaults, codes(key)[0].removeprefix(PREFIX).lower())
        told = json.loads(codes(default)[0]) if codes(default) else None
        assert told == (list(value) if isinstance(value, tuple) else value), key


# Speed


def test_speed() -> None:
    """What it prints is for test_benchmark to say; here only that it is what the README says it is."""
    assert blocks()["speed"] == "python -m tests.benchmark\n"
    assert [name for row in table("column") for name in codes(row[0])] == [column.title for column in COLUMNS]
