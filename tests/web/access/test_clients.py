"""The clients file: what it may say, and how a new version takes the place of the old one."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sse.web.access import clients
from sse.web.access.clients import Client, Directory, digest, parse_clients

DIGEST = digest(b"secret").hex()
FULL = f"""
[my-app]
sha256 = "{DIGEST}"
expires = 2999-01-01T00:00:00Z
upstreams = ["openai"]
allow = ["POST v1/chat/completions", "GET v1/models"]
models = ["gpt-5.4-mini", "qwen-*"]
throttle = "10 per 1 second"
max_streams = 4
quota = "500000 per 1 day"
"""


def entry(name: str, passcode: str, more: str = "") -> str:
    return f'[{name}]\nsha256 = "{digest(passcode.encode()).hex()}"\n{more}\n'


def test_all_keys_are_read() -> None:
    client = parse_clients(FULL)["my-app"]
    assert client.upstreams == frozenset({"openai"})
    assert [route.method for route in client.routes] == ["POST", "GET"]
    assert client.models == ("gpt-5.4-mini", "qwen-*")
    assert client.quota is not None
    assert (client.quota.amount, client.quota.get_expiry()) == (500_000, 86_400)
    assert (client.throttle, client.max_streams) == ("10 per 1 second", 4)
    assert not client.has_expired()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[a", "not TOML", id="not-toml"),
        pytest.param("a = 1", "a: ", id="not-a-table"),
        pytest.param("[a]", "a.sha256: ", id="no-digest"),
        pytest.param('[a]\nsha256 = "secret"', "a.sha256: ", id="a-passcode-for-a-digest"),
        pytest.param(entry("a", "x", "quotas = 1"), "a.quotas: ", id="unknown-key"),
        pytest.param(entry("a", "x", 'allow = ["v1/models"]'), "a.allow.0: ", id="route-without-method"),
        pytest.param(entry("a", "x", 'quota = "many"'), "a.quota: ", id="no-quota"),
        pytest.param(entry("a", "x", 'quota = "1 per day; 2 per hour"'), "a.quota: ", id="two-quotas"),
        pytest.param(entry("a", "x", 'quota = "0 per 1 day"'), "a.quota: ", id="a-quota-of-nothing"),
        pytest.param(f'[a]\nsha256 = "{DIGEST}00"', "a.sha256: ", id="a-longer-digest"),
        pytest.param(entry("a", "x", 'models = [""]'), "a.models.0: ", id="empty-model"),
        pytest.param(entry("a", "x", 'throttle = "often"'), "a.throttle: ", id="no-throttle"),
        pytest.param(entry("a", "x", "max_streams = -1"), "a.max_streams: ", id="negative"),
        pytest.param(entry("a", "x", "max_streams = true"), "a.max_streams: ", id="bool-for-a-number"),
        pytest.param(entry("a", "x", "expires = 2027-01-01T00:00:00"), "a.expires: ", id="no-time-zone"),
        pytest.param(entry("a", "x", 'expires = "2027-01-01"'), "a.expires: ", id="text-for-a-time"),
        pytest.param(entry("'a b'", "x"), "a client name is", id="blank-in-the-name"),
        pytest.param(entry("a", "x") + entry("b", "x"), "same passcode", id="one-passcode-twice"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_clients(text)
    assert "secret" not in str(caught.value)
    assert DIGEST not in str(caught.value)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clients file that is looked at each time."""
    monkeypatch.setattr(clients, "CHECK_INTERVAL", 0.0)
    return tmp_path / "clients.toml"


def find(directory: Directory, passcode: str) -> str | None:
    client = directory.find(passcode.encode())
    return client.name if client else None


def test_passcodes_and_the_file_stand_side_by_side(path: Path) -> None:
    path.write_text(entry("file", "one"))
    directory = Directory({"fixed": "two"}, path)
    assert [find(directory, passcode) for passcode in ("one", "two", "three", "")] == ["file", "fixed", None, None]
    # Streams of the others need not be looked at.
    assert [(known := directory.find(code)) and known.is_temporary for code in (b"one", b"two")] == [True, False]


@pytest.mark.parametrize(("passcodes", "has_file"), [({}, False), ({"a": "one"}, False), ({}, True)])
def test_a_credential_is_asked_for_where_one_can_be_had(path: Path, passcodes: dict[str, str], has_file: bool) -> None:
    path.write_text("")
    assert bool(Directory(passcodes, path if has_file else None)) == (has_file or bool(passcodes))


@pytest.mark.parametrize(("name", "passcode"), [("fixed", "other"), ("other", "two")])
def test_what_both_name_stops_the_start(path: Path, name: str, passcode: str) -> None:
    path.write_text(entry(name, passcode))
    with pytest.raises(ValueError):
        Directory({"fixed": "two"}, path)


def test_a_file_that_is_not_there_stops_the_start(path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Directory({}, path)


def test_a_new_version_is_swapped_in_whole(path: Path) -> None:
    path.write_text(entry("a", "one") + entry("b", "two"))
    directory = Directory({}, path)
    gone = directory.find(b"one")
    kept = directory.find(b"two")
    assert gone is not None and kept is not None
    assert directory.is_valid(gone)
    path.write_text(entry("b", "two") + entry("c", "three"))
    assert [find(directory, passcode) for passcode in ("one", "two", "three")] == [None, "b", "c"]
    assert not directory.is_valid(gone)
    assert directory.is_valid(kept)


def test_a_bad_version_keeps_the_old_one_and_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(entry("a", "one"))
    directory = Directory({}, path)
    path.write_text('[a]\nsha256 = "half')
    with caplog.at_level(logging.ERROR, "sse"):
        assert [find(directory, "one") for _ in range(3)] == ["a"] * 3
    assert len(caplog.messages) == 1
    assert "half" not in caplog.text
    path.unlink()
    assert find(directory, "one") == "a"


def test_a_reassigned_passcode_is_the_new_clients(path: Path) -> None:
    path.write_text(entry("a", "one"))
    directory = Directory({}, path)
    client = directory.find(b"one")
    assert client is not None
    path.write_text(entry("b", "one"))
    assert not directory.is_valid(client)


def test_one_that_has_expired_is_no_client(path: Path) -> None:
    path.write_text(entry("a", "one", "expires = 2001-01-01T00:00:00Z"))
    directory = Directory({}, path)
    assert find(directory, "one") is None
    now = time.time()
    assert Client(name="a", expires=now - 1).has_expired()
    assert not Client(name="a", expires=now + 60).has_expired()


def test_a_credential_that_has_expired_is_not_valid(path: Path) -> None:
    """Of the file, and a token's, of which the directory knows nothing but its end."""
    path.write_text(entry("a", "one", f"expires = {datetime.now(UTC).isoformat()}") + entry("b", "two"))
    directory = Directory({}, path)
    kept = directory.find(b"two")
    assert kept is not None and directory.is_valid(kept)
    assert not directory.is_valid(Client(name="a", digest=digest(b"one")))
    assert directory.is_valid(Client(name="ann", expires=time.time() + 60))
    assert not directory.is_valid(Client(name="ann", expires=time.time() - 1))


def test_a_file_that_is_not_utf_8_is_named(path: Path) -> None:
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        Directory({}, path)


def test_a_new_file_of_the_same_time_and_size_is_read(path: Path) -> None:
    """File systems' clocks are coarse: two versions may have one time."""
    path.write_text(entry("a", "one"))
    directory = Directory({}, path)
    other = path.with_suffix(".new")
    other.write_text(entry("a", "two"))
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)
    assert [find(directory, passcode) for passcode in ("one", "two")] == [None, "a"]


def test_a_file_is_not_read_again_while_it_stays_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(entry("a", "one"))
    directory = Directory({}, path)
    monkeypatch.setattr(clients, "parse_clients", lambda text: pytest.fail("read again"))
    assert find(directory, "one") == "a"
    os.utime(path, (1, 1))
    with pytest.raises(pytest.fail.Exception):
        find(directory, "one")
