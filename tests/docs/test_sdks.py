"""docs/sdks.md: other people's clients, with the page's own table of upstreams."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support.dialect import speak
from ..support.document import HERE, PASSCODE, PATIENCE, block, codes, page, playground, run, run_python, started, table
from ..support.service import Service
from ..support.upstream import Upstream


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A service with the page's upstreams, each of which is the same stand-in."""

    service: Service
    upstream: Upstream

    def text(self, name: str) -> str:
        """Return a block that calls this service."""
        return block(name).replace(HERE, self.service.url)


@pytest.fixture(scope="module")
def whole_stage() -> Iterator[Stage]:
    """The page's table: paths and keys as they are, and instead of each host our own."""
    exported = re.search(r"FLASK_SSE_UPSTREAMS='(.*?)'", block("upstreams"), re.DOTALL)
    passcodes = re.search(r"FLASK_SSE_PASSCODES='(.*?)'", block("upstreams"), re.DOTALL)
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


def test_upstreams() -> None:
    with started(block("upstreams")) as url:
        shown = playground(url)
    assert (shown["upstreams"], shown["open"]) == (["anthropic", "deepseek", "ollama", "openai", "tongyi"], False)


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
    rows = {row[0]: row[1:] for row in table(page("docs/sdks.md"), "API")}
    assert len(rows) == 4
    base_url, model = (codes(cell)[0] for cell in rows[api])
    example_url, example_model = (codes(cell)[0] for cell in rows["OpenAI"])
    text = block("openai").replace(f'"{example_url}"', f'"{base_url}"').replace(example_model, model)
    assert run_python(text.replace(HERE, stage.service.url)) == "Hello, world"
    request = stage.upstream.wait_request()
    assert (request.target, request.field("Authorization")) == (target, key)
    assert json.loads(request.body)["model"] == model


def test_openai_js(stage: Stage, node_modules: Path) -> None:
    script = node_modules / "documentation.mjs"
    script.write_text(stage.text("openai_js"))
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("Hello, world", "")


def test_dashscope(stage: Stage) -> None:
    assert run_python(stage.text("dashscope")) == "Hello, world"
    request = stage.upstream.wait_request()
    assert request.target == "/api/v1/services/aigc/text-generation/generation"
    assert request.field("Authorization") == "Bearer sk-..."


def test_dashscope_forward(stage: Stage) -> None:
    text = run(stage.text("dashscope_forward").replace("https://dashscope.aliyuncs.com", stage.upstream.url))
    assert text.count("event:result") == 3
    request = stage.upstream.wait_request()
    assert (request.field("X-DashScope-SSE"), request.field("Authorization")) == ("enable", "Bearer sk-...")
    assert PASSCODE.encode() not in request.head + request.body


def test_anthropic(stage: Stage) -> None:
    assert run_python(stage.text("anthropic")) == "Hello, world"
    request = stage.upstream.wait_request()
    assert (request.target, request.field("X-Api-Key")) == ("/v1/messages", "sk-ant-...")
    assert PASSCODE not in request.head.decode()
