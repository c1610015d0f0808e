"""docs/gateway.md."""

from __future__ import annotations

import tomllib
from pathlib import Path

from app import create_app
from sse.settings import Settings
from sse.web.access.clients import parse_clients

from ..support.document import block, run


def test_gateway_passcode() -> None:
    said = run(block("gateway_passcode"))
    [client] = parse_clients(said).values()
    assert client.name == "my-app"


def test_gateway_clients(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(block("gateway_clients"))
    app = create_app({"SSE_UPSTREAMS": {"openai": "https://api.openai.com/"}, "SSE_CLIENTS_FILE": str(path)})
    fields = {"X-Passcode": "password"}
    refused = app.test_client().post("/upstream/openai/v1/files", headers=fields)
    assert (refused.json or {})["code"] == "route_not_allowed"
    refused = app.test_client().post("/upstream/openai/v1/chat/completions", headers=fields, json={"model": "gpt-5.4"})
    assert (refused.json or {})["code"] == "model_not_allowed"


def test_gateway_jwt() -> None:
    settings = Settings.from_config(tomllib.loads(block("gateway_jwt")))
    assert settings.jwt["audience"] == "gateway"
