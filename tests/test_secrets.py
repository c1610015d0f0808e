"""Canaries: secrets are planted wherever there can be some, and must not come out anywhere but where they belong."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app import create_app

from .support.service import RawClient, Service, call, start_refused
from .support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head

#: Each secret says what it is, and all hold the one word that is searched for.
WORD = "canary"
PASSCODE = "canary-passcode"
WRONG = "canary-wrong-passcode"
UPSTREAM_KEY = "canary-upstream-key"
TARGET_KEY = "canary-target-key"
CLIENT_KEY = "canary-client-key"
QUERY_KEY = "canary-query-key"
BODY = "canary-body"
STORE_KEY = "canary-store-key"
FILE_PASSCODE = "canary-file-passcode"
FILE_DIGEST = hashlib.sha256(FILE_PASSCODE.encode()).hexdigest()
#: A claim of the tokens, which hold it in another form.
CLAIM = "canary-claim"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)

EVENT = b"data: x\n\n"
JSON = {"Content-Type": "application/json"}
FIELDS = {"Authorization": f"Bearer {CLIENT_KEY}", "X-Api-Key": CLIENT_KEY}


def behave(connection: Connection) -> None:
    """Do what the path says: answer well, badly, or not at all; never repeat what came."""
    while True:
        path = connection.read_request().target.partition("?")[0]
        if path.endswith("/truncated"):
            connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT) + b"zz\r\n")
            return
        if path.endswith("/garbage"):
            connection.send(b"this is no HTTP\r\n\r\n")
            return
        if path.endswith("/closed"):
            return
        if path.endswith("/redirect"):
            connection.send(head(302, "Location: http://x/", "Content-Length: 0"))
        elif path.endswith("/error"):
            connection.send(head(500, "Content-Type: application/json", "Content-Length: 2") + b"{}")
        elif path.endswith("/silent"):
            connection.wait_closed()
            return
        else:
            connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(EVENT) + b"0\r\n\r\n")


def everything(client: RawClient) -> tuple[int, str]:
    """Return the status, and all there is to read of a response."""
    with client:
        response = client.read_head()
        return response.status, f"{response} {client.read_body().decode()}"


def token(**claims: Any) -> str:
    """Return a token that the gateway accepts, unless a claim says otherwise."""
    said = {"iss": "site", "aud": "gateway", "sub": "ann", "exp": int(time.time()) + 600, "secret": CLAIM, **claims}
    return jwt.encode(said, KEY, algorithm="RS256")


def tokens() -> dict[str, str]:
    """Return tokens of all kinds: what is accepted, and what is refused, each for another reason."""
    good = token()
    return {
        "good": good,
        "expired": token(exp=1),
        "elsewhere": token(aud=CLAIM),
        "cut": good[:-4],
        "unsigned": jwt.encode({"sub": CLAIM}, "", algorithm="none"),
        "long": token(padding="x" * 9000),
    }


def shows(text: str, secrets: Iterable[str]) -> bool:
    """Return whether a text holds one of the secrets, or a part of a token."""
    parts = {part for secret in secrets for part in secret.split(".") if len(part) > 40}
    return WORD in text or FILE_DIGEST in text or any(part in text for part in parts)


def calls(upstream: Upstream, unused: str, known: Iterable[str]) -> list[tuple[str, dict[str, str], bytes]]:
    """Return requests of all kinds, each with all secrets that fit into it: target, fields, body."""
    paths = ["ok", "truncated", "garbage", "closed", "redirect", "error", "silent"]
    made: list[tuple[str, dict[str, str], bytes]] = []

    def forward(target: str, fields: dict[str, str] | None = None, **document: Any) -> None:
        whole = {"targetUrl": target, "header": FIELDS, "body": BODY, "passcode": PASSCODE, **document}
        made.append((f"/forward-sse?key={QUERY_KEY}", {**JSON, **(fields or {})}, json.dumps(whole).encode()))

    for path in paths:
        forward(f"{upstream.url}/{path}?key={QUERY_KEY}")
        own = {**FIELDS, "X-Passcode": PASSCODE, "Cookie": f"session={CLIENT_KEY}"}
        made.append((f"/upstream/test/{path}?key={QUERY_KEY}", own, BODY.encode()))
        made.append((f"/upstream/several/{path}?key={QUERY_KEY}", own, BODY.encode()))
        made.append((f"/upstream/test/{path}?key={QUERY_KEY}", {"Authorization": f"Bearer {PASSCODE}"}, BODY.encode()))
    forward(f"{unused}/?key={QUERY_KEY}")
    forward(f"https://10.0.0.1/?key={QUERY_KEY}")
    forward(f"https://user:{CLIENT_KEY}@example.com/")
    forward(f"//{QUERY_KEY}")
    forward(f"{upstream.url}/ok", passcode=WRONG)
    forward(f"{upstream.url}/ok", {"X-Passcode": WRONG, "Authorization": f"Bearer {WRONG}"}, passcode="")
    forward(f"{upstream.url}/ok", method=CLIENT_KEY)
    forward(f"{upstream.url}/ok", passcode={PASSCODE: 1})
    forward(f"{upstream.url}/ok", body=7, header=[CLIENT_KEY])
    for value in (f"{CLIENT_KEY}\r\nX: y", f"{CLIENT_KEY}\0", f"{CLIENT_KEY}\u20ac", None, True, {CLIENT_KEY: 1}):
        forward(f"{upstream.url}/ok", header={"Authorization": value})
    forward(f"{upstream.url}/ok", header=json.dumps(FIELDS)[:-1])
    forward(f"{upstream.url}/ok", body=[[[[f"{BODY}\ud800"]]]])
    for raw in (
        f'{{"targetUrl": "{CLIENT_KEY}',
        f'"{BODY}"',
        f'["{BODY}"]',
        f'{{"body": {"[" * 99}"{BODY}"{"]" * 99}}}',
    ):
        made.append(("/forward-sse", JSON, raw.encode()))
    made.append(("/forward-sse", {"Content-Type": f"text/{CLIENT_KEY}", "X-Passcode": PASSCODE}, BODY.encode()))
    made.append((f"/upstream/test/..?key={QUERY_KEY}", {"X-Passcode": PASSCODE}, BODY.encode()))
    made.append((f"/upstream/other/?key={QUERY_KEY}", {"X-Passcode": PASSCODE}, BODY.encode()))
    for credential in (FILE_PASSCODE, *known):
        for path in ("ok", "truncated", "error"):
            made.append((f"/upstream/test/{path}", {"Authorization": f"Bearer {credential}"}, BODY.encode()))
        made.append((f"/upstream/other/?token={credential[:2000]}", {"X-Passcode": credential}, BODY.encode()))
        forward(f"{upstream.url}/ok", passcode=credential)
        forward(f"{upstream.url}/ok?token={credential[:2000]}", {"X-Passcode": credential}, passcode=WRONG)
    made.append((f"/sse?lastEventId=1&key={QUERY_KEY}", FIELDS, BODY.encode()))
    made.append((f"/healthz?key={QUERY_KEY}", FIELDS, BODY.encode()))
    return made


def test_no_secret_comes_out_anywhere(
    redis_server: Any, upstream: Callable[..., Upstream], service: Callable[..., Service], tmp_path: Path
) -> None:
    source, unused = upstream(behave), upstream()
    unused.refuse()
    clients, keys, known = tmp_path / "clients.toml", tmp_path / "keys.json", tokens()
    clients.write_text(f'[file]\nsha256 = "{FILE_DIGEST}"\nquota = "100000 per 1 day"\nallow = ["POST ok"]\n')
    keys.write_text(json.dumps({"keys": [jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True)]}))
    table = {
        "test": {"url": source.url, "headers": {"X-Upstream-Key": UPSTREAM_KEY}},
        "unused": {"url": unused.url, "headers": {"X-Upstream-Key": UPSTREAM_KEY}},
        "several": {
            "url": f"{source.url}/several",
            "retry": [500],
            "targets": [
                {"id": "a", "headers": {"X-Upstream-Key": TARGET_KEY}},
                {"id": "b", "url": unused.url, "headers": {"X-Upstream-Key": TARGET_KEY}},
            ],
        },
    }
    relay = service(
        SSE_UPSTREAMS=table,
        SSE_PASSCODES={"alice": PASSCODE},
        SSE_CLIENTS_FILE=str(clients),
        SSE_JWT={"keys": str(keys), "issuer": "site", "audience": "gateway"},
        SSE_QUOTA="1000000 per 1 day",
        SSE_USAGE=True,
        SSE_STORAGE_URI=redis_server.url.replace("//", f"//:{STORE_KEY}@"),
        SSE_RESPONSE_TIMEOUT=0.5,
        SSE_THROTTLE="1000 per minute",
        SSE_METRICS=True,
    )
    statuses = set()
    for target, fields, body in calls(source, unused.url, known.values()):
        status, said = everything(call(relay, "POST", target, fields, body))
        statuses.add(status)
        assert not shows(said, known.values()), (target, body, said)
    assert statuses >= {200, 400, 401, 403, 404, 405, 415, 500, 502, 504}
    for target in ("/", "/playground.json", "/metrics", "/sse-static/sse.js", f"/no/such/page?key={QUERY_KEY}"):
        assert not shows(everything(call(relay, "GET", target))[1], known.values()), target
    relay.stop()
    log = relay.log()
    assert all(
        f"stream end=complete status=200 upstream=test client={name} " in log for name in ("alice", "file", "ann")
    )
    assert not shows(log, known.values())
    # What belongs upstream did arrive there, and the gateway's own credential did not.
    seen = b"".join(request.head + request.body for request in source.requests).decode()
    assert all(secret in seen for secret in (UPSTREAM_KEY, TARGET_KEY, CLIENT_KEY, QUERY_KEY, BODY))
    assert PASSCODE not in seen and WRONG not in seen and FILE_PASSCODE not in seen
    assert known["good"] not in seen.replace(f"?token={known['good']}", "")


def test_what_is_thrown_holds_no_secret(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the gateway is logged with its traceback; that must not show what the request held."""
    caplog.set_level(logging.DEBUG)
    app = create_app(
        {
            "SSE_UPSTREAMS": {"test": {"url": "http://127.0.0.1:1/", "headers": {"X-Key": UPSTREAM_KEY}}},
            "SSE_PASSCODES": {"alice": PASSCODE},
        }
    )
    state = app.extensions["sse"]

    def break_down(*args: object, **options: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(type(state.upstreams), "open", break_down)
    document = {
        "targetUrl": f"http://127.0.0.1:1/?key={QUERY_KEY}",
        "header": FIELDS,
        "body": BODY,
        "passcode": PASSCODE,
    }
    response = app.test_client().post(f"/forward-sse?key={QUERY_KEY}", json=document)
    assert (response.status_code, response.get_json()["code"]) == (500, "internal_error")
    assert "RuntimeError" in caplog.text
    assert WORD not in caplog.text
    assert WORD not in response.get_data(as_text=True)


def test_no_repr_shows_a_secret() -> None:
    targets = [{"id": "a", "headers": {"Authorization": TARGET_KEY}}]
    entry = {"url": "https://api.example.com/", "headers": {"Authorization": UPSTREAM_KEY}, "targets": targets}
    app = create_app(
        {
            "SSE_UPSTREAMS": {"test": entry},
            "SSE_PASSCODES": {"alice": PASSCODE},
            "SSE_STORAGE_URI": f"redis://:{STORE_KEY}@127.0.0.1:1/0",
        }
    )
    state = app.extensions["sse"]
    parts = [state, *(getattr(state, name) for name in state.__dataclass_fields__)]
    for part in [*parts, state.table.get("test"), state.settings.upstreams]:
        assert WORD not in repr(part)
        assert WORD not in str(part)


@pytest.mark.parametrize(
    "text", ["[a]\nsha256 = {!r}", "[a]\n{} = 1\n[b", "a = {!r}", "[a]\nquota = {!r}\nsha256 = 'x'"]
)
def test_a_clients_file_that_cannot_be_used_shows_no_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "clients.toml").write_text(text.format(PASSCODE))
    said = start_refused(SSE_CLIENTS_FILE=str(tmp_path / "clients.toml"))
    assert "SSE_CLIENTS_FILE: " in said
    assert WORD not in said


@pytest.mark.parametrize(
    "settings",
    [
        {"SSE_PASSCODES": {"alice": PASSCODE, "bob": PASSCODE}},
        {"SSE_PASSCODES": {"alice": [PASSCODE]}},
        {"SSE_UPSTREAMS": {"a": {"url": "https://example.com/", "headers": {"X": f"{UPSTREAM_KEY}\n"}}}},
        {"SSE_UPSTREAMS": {"a": {"url": "https://example.com/", "targets": [{"id": TARGET_KEY + " "}]}}},
    ],
)
def test_a_start_that_fails_shows_no_secret(settings: dict[str, Any]) -> None:
    assert WORD not in start_refused(**settings)
