"""docs/gateway.md."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from app import create_app
from sse.protocol.target.order import order_targets
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


def test_gateway_targets() -> None:
    [upstream] = Settings.from_config(tomllib.loads(block("gateway_targets"))).upstreams or ()
    assert [(target.id, target.weight, target.base.host) for target in upstream.targets] == [
        ("a", 3, "api.openai.com"),
        ("b", 1, "api.openai.com"),
        ("c", 1, "10.0.0.7"),
    ]
    assert len({target.headers for target in upstream.targets}) == 3
    clients = Counter(order_targets(f"name:{number}", upstream.targets)[0].id for number in range(2000))
    assert clients["a"] == pytest.approx(2000 * 3 / 5, rel=0.1)


def test_gateway_jwt() -> None:
    settings = Settings.from_config(tomllib.loads(block("gateway_jwt")))
    assert settings.jwt["audience"] == "gateway"
