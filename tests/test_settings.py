"""Every SSE_ key: what is taken, and what stops the start with the key's name and no secret."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Flask

from app import create_app
from sse import SSE
from sse.settings import Settings

from .support.service import start_refused

CANARY = "canary-7f3a9"

#: Keys and values that stop the start; whatever of a value may be a secret is the canary.
BAD: list[tuple[str, object]] = [
    ("SSE_UPSTREAM", {}),
    ("SSE_PASSCODE", CANARY),
    ("SSE_TIMEOUT", 1),
    ("SSE_METRIC", True),
    ("SSE_MAX_STREAM", 1),
    ("SSE_CORS_ORIGIN", []),
    ("sse_passcodes", {"me": CANARY}),
    ("FLASK_SSE_PASSCODES", {"me": CANARY}),
    ("SSE_PASSCODES", {"me": CANARY, "SSE_LOG_FORMAT": "json"}),
    ("SSE_PASSCODES", {"me": CANARY, "sse_metrics": "true"}),
    ("SSE_PASSCODES", {"me": CANARY, "SSE_PASCODES": "x"}),
    ("SSE_UPSTREAMS", {"a": "https://example.com/", "SSE_THROTTLE": "https://example.com/"}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": "X-A"}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": ["X A"]}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": ["Set-Cookie"]}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": ["Location"]}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": ["Transfer-Encoding"]}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "response_headers": ["Access-Control-Allow-Origin"]}}),
    ("SSE_UPSTREAMS", {}),
    ("SSE_UPSTREAMS", None),
    ("SSE_UPSTREAMS", []),
    ("SSE_UPSTREAMS", f"http://{CANARY}/"),
    ("SSE_UPSTREAMS", {"a": None}),
    ("SSE_UPSTREAMS", {"a": 7}),
    ("SSE_UPSTREAMS", {"a": ""}),
    ("SSE_UPSTREAMS", {"a": "example.com"}),
    ("SSE_UPSTREAMS", {"a": "/v1"}),
    ("SSE_UPSTREAMS", {"a": "ftp://example.com/"}),
    ("SSE_UPSTREAMS", {"a": f"https://user:{CANARY}@example.com/"}),
    ("SSE_UPSTREAMS", {"a": f"https://example.com/?key={CANARY}"}),
    ("SSE_UPSTREAMS", {"a": f"https://example.com/#{CANARY}"}),
    ("SSE_UPSTREAMS", {"a": "https://exa mple.com/"}),
    ("SSE_UPSTREAMS", {"a": "http://0.0.0.0/"}),
    ("SSE_UPSTREAMS", {"a": "http://224.0.0.1/"}),
    ("SSE_UPSTREAMS", {"a": "http://255.255.255.255/"}),
    ("SSE_UPSTREAMS", {"": "https://example.com/"}),
    ("SSE_UPSTREAMS", {"a/b": "https://example.com/"}),
    ("SSE_UPSTREAMS", {"a b": "https://example.com/"}),
    ("SSE_UPSTREAMS", {"a": {}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "header": {"Authorization": CANARY}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": f"Authorization: {CANARY}"}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": [CANARY]}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Authorization": [CANARY]}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Authorization": f"{CANARY}\r\nX: y"}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Authorization": f"{CANARY}\0"}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Authorization": f"{CANARY}\u20ac"}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"X Y": CANARY}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Content-Length": "1"}}}),
    ("SSE_UPSTREAMS", {"a": {"url": "https://example.com/", "headers": {"Host": "x"}}}),
    ("SSE_ALLOW_PUBLIC_TARGETS", 1),
    ("SSE_ALLOW_PUBLIC_TARGETS", "yes"),
    ("SSE_OPEN", "true"),
    ("SSE_PASSCODES", CANARY),
    ("SSE_PASSCODES", [CANARY]),
    ("SSE_PASSCODES", {"a": ""}),
    ("SSE_PASSCODES", {"a": " "}),
    ("SSE_PASSCODES", {"a": None}),
    ("SSE_PASSCODES", {"a": [CANARY]}),
    ("SSE_PASSCODES", {"": CANARY}),
    ("SSE_PASSCODES", {f"{CANARY} ": "a"}),
    ("SSE_PASSCODES", {"a": CANARY, "b": CANARY}),
    ("SSE_THROTTLE", "often"),
    ("SSE_THROTTLE", "60"),
    ("SSE_THROTTLE", "60 per fortnight"),
    ("SSE_THROTTLE", 60),
    ("SSE_THROTTLE", None),
    ("SSE_STORAGE_URI", ""),
    ("SSE_STORAGE_URI", "redis://"),
    ("SSE_STORAGE_URI", "memory"),
    ("SSE_STORAGE_URI", f"postgres://user:{CANARY}@127.0.0.1/"),
    ("SSE_STORAGE_URI", f"memcached://{CANARY}:11211"),
    ("SSE_STORAGE_URI", f"async+redis://:{CANARY}@127.0.0.1/"),
    ("SSE_STORAGE_URI", f"redis://:{CANARY}#x@127.0.0.1:6379/0"),
    ("SSE_STORAGE_URI", f"redis://x:{CANARY}/y@127.0.0.1:6379/0"),
    ("SSE_STORAGE_URI", f"redis://127.0.0.1:{CANARY}/0"),
    ("SSE_CORS_ORIGINS", "*"),
    ("SSE_CORS_ORIGINS", ["https://site.example/"]),
    ("SSE_CORS_ORIGINS", ["https://site.example/path"]),
    ("SSE_CORS_ORIGINS", ["site.example"]),
    ("SSE_CORS_ORIGINS", ["https://*.example"]),
    ("SSE_CORS_ORIGINS", [".*"]),
    ("SSE_CORS_ORIGINS", ["null"]),
    ("SSE_CORS_ORIGINS", [7]),
    ("SSE_TRUSTED_PROXIES", -1),
    ("SSE_TRUSTED_PROXIES", "1"),
    ("SSE_TRUSTED_PROXIES", True),
    ("SSE_MAX_STREAMS", -1),
    ("SSE_MAX_STREAMS_PER_CLIENT", 1.5),
    ("SSE_MAX_BODY", 0),
    ("SSE_MAX_BODY", "10 MiB"),
    ("SSE_CONNECT_TIMEOUT", 0),
    ("SSE_RESPONSE_TIMEOUT", -1),
    ("SSE_IDLE_TIMEOUT", "60"),
    ("SSE_SEND_TIMEOUT", float("nan")),
    ("SSE_MAX_DURATION", float("inf")),
    ("SSE_MAX_DURATION", True),
    ("SSE_CA_FILE", "/no/such/file.pem"),
    ("SSE_CA_FILE", 7),
    ("SSE_METRICS", "yes"),
    ("SSE_LOG_FORMAT", "xml"),
    ("SSE_LOG_FORMAT", ["json"]),
    ("SSE_CONTROL_DIR", "relative"),
    ("SSE_CONTROL_DIR", "/" + "x" * 200),
    ("SSE_CONTROL_DIR", "/etc/passwd"),
    ("SSE_CONTROL_DIR", "/usr"),
    ("SSE_HEARTBEAT", None),
    ("SSE_RELAY_HEARTBEAT", -0.1),
    ("SSE_RESUME_TTL", -1),
    ("SSE_RESUME_TTL", 1.5),
    ("SSE_RESUME_LEAVE", "long"),
    ("SSE_RESUME_LEAVE_MAX", -1),
    ("SSE_RESUME_MAX_BYTES", 0),
    ("SSE_RESUME_MEMORY", "256M"),
    ("SSE_CHANNEL_HISTORY", 0),
    ("SSE_CHANNEL_HISTORY_SECONDS", 0.5),
    ("SSE_CHANNEL_HISTORY_BYTES", -1),
    ("SSE_CHANNEL_MAX_EVENT", "64 KiB"),
    ("SSE_MAX_READERS", -1),
    ("SSE_MAX_READERS_PER_CLIENT", True),
    ("SSE_MAX_READER", 1),
]

GOOD: dict[str, object] = {
    "SSE_UPSTREAMS": {"a": "https://example.com/", "b": {"url": "http://127.0.0.1:11434", "headers": {"X": CANARY}}},
    "SSE_ALLOW_PUBLIC_TARGETS": True,
    "SSE_PASSCODES": {"alice": CANARY, "bob": "other"},
    "SSE_OPEN": True,
    "SSE_THROTTLE": "10/second;100 per 5 minute",
    "SSE_STORAGE_URI": f"redis://:{CANARY}@127.0.0.1:1/0",
    "SSE_CORS_ORIGINS": ["https://site.example", "http://localhost:8080"],
    "SSE_TRUSTED_PROXIES": 2,
    "SSE_MAX_STREAMS": 0,
    "SSE_MAX_STREAMS_PER_CLIENT": 0,
    "SSE_MAX_BODY": 1,
    "SSE_CONNECT_TIMEOUT": 0.5,
    "SSE_RESPONSE_TIMEOUT": 0,
    "SSE_IDLE_TIMEOUT": 0,
    "SSE_SEND_TIMEOUT": 0,
    "SSE_MAX_DURATION": 3600,
    "SSE_CA_FILE": "",
    "SSE_METRICS": True,
    "SSE_LOG_FORMAT": "json",
    "SSE_CONTROL_DIR": "/no/such/directory",
    "SSE_HEARTBEAT": 0,
    "SSE_RELAY_HEARTBEAT": 20,
    "SSE_RESUME_TTL": 60,
    "SSE_RESUME_LEAVE": 5,
    "SSE_RESUME_LEAVE_MAX": 50.5,
    "SSE_RESUME_MAX_BYTES": 1000,
    "SSE_RESUME_MEMORY": 100000,
    "SSE_CHANNEL_HISTORY": 10,
    "SSE_CHANNEL_HISTORY_SECONDS": 10,
    "SSE_CHANNEL_HISTORY_BYTES": 1000,
    "SSE_CHANNEL_MAX_EVENT": 100,
    "SSE_MAX_READERS": 0,
    "SSE_MAX_READERS_PER_CLIENT": 0,
    "SSE_CLIENTS_FILE": "",
    "SSE_JWT": {"keys": "https://issuer.example/keys", "issuer": "https://issuer.example", "audience": "relay"},
    "SSE_QUOTA": "100000 per day",
    "SSE_USAGE": True,
}


@pytest.mark.parametrize(("key", "value"), BAD, ids=lambda part: repr(part)[:40])
def test_a_bad_value_stops_the_start_with_the_keys_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{key}\b") as refused:
        Settings.from_config({key: value})
    error: BaseException | None = refused.value
    while error is not None:
        assert CANARY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings.from_config({"OTHER": 1, "RATELIMIT_ENABLED": False})
    assert settings == Settings()
    documented: dict[str, Any] = {
        "upstreams": None,
        "allow_public_targets": False,
        "passcodes": {},
        "open": False,
        "throttle": "60 per 10 second",
        "storage_uri": "memory://",
        "cors_origins": ("*",),
        "trusted_proxies": 0,
        "max_streams": 2000,
        "max_streams_per_client": 32,
        "max_body": 10 * 1024 * 1024,
        "connect_timeout": 5,
        "response_timeout": 600,
        "idle_timeout": 300,
        "send_timeout": 30,
        "max_duration": 0,
        "ca_file": "",
        "metrics": False,
        "log_format": "text",
        "control_dir": "",
        "heartbeat": 15,
        "relay_heartbeat": 0,
        "resume_ttl": 300,
        "resume_leave": 60,
        "resume_leave_max": 600,
        "resume_max_bytes": 4 * 1024 * 1024,
        "resume_memory": 256 * 1024 * 1024,
        "channel_history": 256,
        "channel_history_seconds": 300,
        "channel_history_bytes": 1024 * 1024,
        "channel_max_event": 64 * 1024,
        "max_readers": 10_000,
        "max_readers_per_client": 32,
        "clients_file": "",
        "jwt": {},
        "quota": "",
        "usage": False,
    }
    assert {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)} == documented


def test_every_key_is_taken_and_no_secret_is_shown() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} == {key[4:].lower() for key in GOOD}
    settings = Settings.from_config(GOOD)
    assert (settings.trusted_proxies, settings.throttle, settings.metrics) == (2, GOOD["SSE_THROTTLE"], True)
    assert CANARY not in repr(settings)
    assert settings.upstreams is not None
    assert CANARY not in repr(settings.upstreams)


def test_the_settings_do_not_change_with_what_they_were_made_of() -> None:
    passcodes = {"alice": "a"}
    settings = Settings.from_config({"SSE_PASSCODES": passcodes})
    passcodes["mallory"] = "m"
    assert dict(settings.passcodes) == {"alice": "a"}


KEYED = {"a": {"url": "https://example.com/", "headers": {"Authorization": CANARY}}}


#: With a key in one of the targets alone.
SEVERAL = {"a": {"url": "https://example.com/", "targets": [{"id": "a"}, {"id": "b", "headers": {"X-Key": CANARY}}]}}


@pytest.mark.parametrize(
    "config", [{"SSE_UPSTREAMS": KEYED}, {"SSE_UPSTREAMS": SEVERAL}, {"SSE_ALLOW_PUBLIC_TARGETS": True}]
)
def test_an_open_gateway_with_keys_needs_sse_open(config: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="^SSE_PASSCODES") as refused:
        create_app(config)
    assert CANARY not in str(refused.value)
    create_app({**config, "SSE_OPEN": True})
    create_app({**config, "SSE_PASSCODES": {"alice": "a"}})
    site = Flask("site")
    site.config.update(config)
    SSE(site, authorize=lambda request: None)
    site = Flask("site")
    site.config.update(config)
    with pytest.raises(ValueError, match="^SSE_PASSCODES"):
        SSE(site)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"SSE_UPSTREAM": {"a": f"https://{CANARY}.example/"}}, "SSE_UPSTREAM"),
        ({"SSE_UPSTREAMS": KEYED}, "SSE_PASSCODES"),
        ({"SSE_STORAGE_URI": f"redis://127.0.0.1:{CANARY}/0"}, "SSE_STORAGE_URI"),
    ],
)
def test_a_failed_start_is_explained_without_secrets(settings: dict[str, Any], key: str) -> None:
    said = start_refused(**settings)
    assert f"Error: {key}" in said and "Traceback" not in said
    assert CANARY not in said


def test_the_environment_goes_before_the_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sse.toml"
    path.write_text('SSE_MAX_STREAMS = 7\nSSE_TRUSTED_PROXIES = 1\n[SSE_UPSTREAMS]\na = "https://example.com/"\n')
    monkeypatch.setenv("SSE_CONFIG", str(path))
    monkeypatch.setenv("FLASK_SSE_MAX_STREAMS", json.dumps(8))
    settings = create_app().extensions["sse"].settings
    assert (settings.max_streams, settings.trusted_proxies) == (8, 1)
    assert [upstream.name for upstream in settings.upstreams] == ["a"]


@pytest.mark.parametrize("key", ["SSE_", "SSE_REDIS_URL", "SSE_DEBUG", "SSE_PING_INTERVAL", "SSE_CONFIG", "OTHER"])
def test_a_key_of_somebody_else_is_left_alone(key: str) -> None:
    """Flask-SSE, which is configured by SSE_REDIS_URL, could not be used beside this."""
    assert Settings.from_config({key: object()}) == Settings()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("SSE_PASSCODE", "SSE_PASSCODES"),
        ("SSE_CORS_ORIGIN", "SSE_CORS_ORIGINS"),
        ("SSE_MAX_STREAM", "SSE_MAX_STREAMS"),
        ("sse_open", "SSE_OPEN"),
        ("FLASK_SSE_METRICS", "SSE_METRICS"),
    ],
)
def test_a_misspelt_key_is_refused_with_what_was_meant(key: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is not a setting: did you mean {meant}[?]$"):
        Settings.from_config({key: CANARY})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SSE_PASSCODES", "FLASK_SSE_PASSCODES"),
        ("SSE_PASSCODES__me", "FLASK_SSE_PASSCODES"),
        ("SSE_PASSCODE", "FLASK_SSE_PASSCODES"),
        ("sse_open", "FLASK_SSE_OPEN"),
        ("FLASK_SSE_CONFIG", "SSE_CONFIG"),
        ("FLASK_SSE_UPSTREAM", "SSE_UPSTREAMS"),
        ("FLASK_sse_passcodes", "SSE_PASSCODES"),
    ],
)
def test_an_unread_environment_variable_stops_the_service(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, CANARY)
    with pytest.raises(ValueError, match=rf"did you mean {meant}[?]") as caught:
        create_app()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["SSE_REDIS_URL", "SSE_HOST", "FLASK_DEBUG", "FLASK_SSE_PASSCODES__me"])
def test_other_environment_variables_do_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1a")
    create_app()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('passcodes.me = "canary"', "passcodes in the settings file is not read: did you mean SSE_PASSCODES?"),
        (
            'sse.passcodes.me = "canary"',
            "the table sse in the settings file is not read: write SSE_... above all tables",
        ),
        ('sse_passcodes.me = "canary"', "sse_passcodes in the settings file is not read: did you mean SSE_PASSCODES?"),
        ('FLASK_SSE_PASSCODES.me = "canary"', "FLASK_SSE_PASSCODES .* did you mean SSE_PASSCODES?"),
        ('SSE_PASSCODE.me = "canary"', "SSE_PASSCODE .* did you mean SSE_PASSCODES?"),
        ('[SSE_PASSCODES]\nme = "canary"\nSSE_LOG_FORMAT = "json"', "SSE_PASSCODES: SSE_LOG_FORMAT is not read below"),
        ('[SSE_UPSTREAMS.a]\nurl = "https://a.b/"\nSSE_OPEN = true', "SSE_UPSTREAMS: SSE_OPEN is not read below"),
        ("[other]\nSSE_METRICS = true", "other: SSE_METRICS is not read below"),
    ],
)
def test_a_line_of_the_file_that_is_not_read_stops_the_service(
    text: str, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key below a table became a client whose passcode was "json"."""
    (tmp_path / "settings.toml").write_text(text)
    monkeypatch.setenv("SSE_CONFIG", str(tmp_path / "settings.toml"))
    with pytest.raises(ValueError, match=words) as caught:
        create_app()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "origin",
    [
        "chrome-extension://abcdefghijklmnop",
        "moz-extension://1-2",
        "tauri://localhost",
        "capacitor://localhost",
        "app://-",
    ],
)
def test_origins_of_apps_can_be_named(origin: str) -> None:
    assert Settings.from_config({"SSE_CORS_ORIGINS": [origin]}).cors_origins == (origin,)
