"""docs/configuration.md and docs/http-api.md."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sse.settings import Settings

from ..support.document import HERE, OLLAMA, block, playground, run, site_of, started
from ..support.relay import Relay
from ..support.upstream import respond


def test_configuration_site() -> None:
    settings = site_of(block("configuration_site")).extensions["sse"].settings
    assert settings.idle_timeout == 60
    assert [upstream.name for upstream in settings.upstreams] == ["ollama"]


def test_configuration_environment() -> None:
    with started(block("configuration_environment")) as url:
        assert playground(url)["upstreams"] == ["ollama"]


def test_configuration_file() -> None:
    settings = Settings.from_config(tomllib.loads(block("configuration_file")))
    assert [upstream.name for upstream in settings.upstreams or ()] == ["ollama", "deepseek"]
    assert (settings.idle_timeout, list(settings.passcodes)) == (60, ["my-front-end"])


def test_configuration_start(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text(block("configuration_file"))
    text = block("configuration_start").replace("relay.toml", str(tmp_path / "relay.toml"))
    with started(text) as url:
        assert playground(url)["upstreams"] == ["deepseek", "ollama"]
    with started(text, FLASK_SSE_UPSTREAMS='{"other": "http://127.0.0.1:9/"}') as url:
        assert playground(url)["upstreams"] == ["other"]


def test_forward(relay: Relay) -> None:
    relay.upstream.script = respond(
        b'{"message": {"content": "Hello"}}\n', fields=["Content-Type: application/x-ndjson"]
    )
    text = block("forward").replace(HERE, relay.service.url).replace(OLLAMA, relay.upstream.url)
    assert run(text) == '{"message": {"content": "Hello"}}\n'
    assert relay.upstream.wait_request().target == "/api/chat"
