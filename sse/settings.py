"""The settings: every `SSE_` key of the configuration, in one frozen dataclass, checked at start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import limits

from .protocol.target.entry import InvalidEntry, Upstream, parse_upstream
from .relay.control import MAX_PATH, check_directory
from .relay.redis import check_storage_uri
from .setting_name import PREFIX as PREFIX
from .setting_name import SettingError as SettingError
from .setting_name import check_below, find_key

_CLIENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# With any scheme: apps and extensions have their own, such as tauri://localhost and chrome-extension://<id>.
#: Signatures by keys that may be published.
_ALGORITHMS = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {"EdDSA"}
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def _upstreams(value: object) -> tuple[Upstream, ...]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must be an object of upstreams by name, with at least one")
    return tuple(parse_upstream(name, entry) for name, entry in value.items())


def _passcodes(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must be an object: client name -> passcode")
    for name, passcode in value.items():
        if not isinstance(name, str) or not _CLIENT_NAME.fullmatch(name):
            # Not shown, because name and passcode may be swapped.
            raise ValueError("a client name is not 1 to 64 of A-Z a-z 0-9 . _ -")
        # An empty passcode would admit every client that sends none.
        if not isinstance(passcode, str) or not passcode.strip():
            raise ValueError(f"the passcode of {name!r} must be a string that is not empty")
    if len(set(value.values())) != len(value):
        raise ValueError("two clients have the same passcode")
    return dict(value)


def _throttle(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError('must be a string such as "60 per 10 second", or "" for none')
    try:
        if value:
            limits.parse_many(value)
    except ValueError as error:
        raise ValueError(f'{value!r} is no limit, such as "60 per 10 second" or "1000 per hour"') from error
    return value


def _quota(value: object) -> str:
    if not isinstance(value, str) or (value and len(limits.parse_many(value)) != 1):
        raise ValueError('must be one amount and one window, such as "2000000 per 1 day", or "" for none')
    return value


def _jwt(value: object) -> Mapping[str, Any]:
    known = {"keys", "issuer", "audience", "algorithms", "client"}
    if not isinstance(value, Mapping) or (value and not {"keys", "issuer", "audience"} <= set(value) <= known):
        raise ValueError("must be an object of keys, issuer and audience and, if need be, algorithms and client")
    if value and find_spec("jwt") is None:
        raise ValueError("needs a package that is not installed: pip install 'flask-sse-relay[jwt]'")
    algorithms = value.get("algorithms", [])
    if not isinstance(algorithms, list | tuple) or not set(algorithms) <= _ALGORITHMS:
        raise ValueError(f"algorithms must be a list of some of {', '.join(sorted(_ALGORITHMS))}")
    for name in set(value) - {"algorithms"}:
        if not isinstance(value[name], str) or not value[name]:
            raise ValueError(f"{name} must be a string that is not empty")
    return dict(value)


def _storage_uri(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError('must be a string such as "memory://" or "redis://127.0.0.1:6379/0"')
    if value != "memory://":
        check_storage_uri(value)
    return value


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(origin, str) for origin in value):
        raise ValueError("must be a list of origins")
    for origin in value:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f'{origin!r} is no origin, such as "https://site.example" (no path), nor "*"')
    return tuple(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _metrics(value: object) -> bool:
    if _flag(value) and find_spec("prometheus_client") is None:
        raise ValueError("needs a package that is not installed: pip install 'flask-sse-relay[metrics]'")
    return _flag(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number, 0 or more, not {value!r}")
    return value


def _positive_count(value: object) -> int:
    if not _count(value):
        raise ValueError("must be more than 0")
    return _count(value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def _positive_seconds(value: object) -> float:
    if not _seconds(value):
        raise ValueError("must be more than 0 seconds")
    return _seconds(value)


def _log_format(value: object) -> str:
    if value not in ("text", "json"):
        raise ValueError(f'must be "text" or "json", not {value!r}')
    return str(value)


def _file(value: object) -> str:
    if not isinstance(value, str) or (value and not Path(value).is_file()):
        raise ValueError(f"must be the path of a file that is there, not {value!r}")
    return value


def _control_directory(value: object) -> str:
    if not isinstance(value, str) or (value and not Path(value).is_absolute()):
        raise ValueError(f"must be the absolute path of a directory, not {value!r}")
    if len(value.encode("utf-8", "surrogateescape")) > MAX_PATH:
        raise ValueError(f"must not be longer than {MAX_PATH} bytes, because a socket's path cannot be")
    if value:
        check_directory(Path(value))
    return value


def _key(check: Callable[[object], Any], default: Any, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked settings of one app; the key of `idle_timeout` is `SSE_IDLE_TIMEOUT`, and so on."""

    #: What may be called: name -> URL, or name -> {"url": ..., "headers": {...}}. None: the built-in demonstration.
    upstreams: tuple[Upstream, ...] | None = _key(_upstreams, None, secret=True)
    #: Whether any public https target is allowed besides the table.
    allow_public_targets: bool = _key(_flag, False)
    #: Client name -> passcode. Empty, and no `authorize` callback: every client may call.
    passcodes: Mapping[str, str] = field(default_factory=dict, repr=False, metadata={"check": _passcodes})
    #: TOML file of further clients, with what each may do; it is read again when it changes. "": none.
    clients_file: str = _key(_file, "")
    #: JSON Web Tokens that are taken as credentials: {"keys": URL or file, "issuer": ..., "audience": ...}. {}: none.
    jwt: Mapping[str, Any] = field(default_factory=dict, metadata={"check": _jwt})
    #: Tokens that each client may spend in a fixed window, such as "2000000 per 1 day". "": no limit.
    quota: str = _key(_quota, "")
    #: Whether what upstreams report of tokens is read, logged and counted.
    usage: bool = _key(_flag, False)
    #: Whether it is meant that everybody may call although upstream keys or open targets are at stake.
    open: bool = _key(_flag, False)
    #: Calls of each relay endpoint per client, in the words of Flask-Limiter. "": no throttle.
    throttle: str = _key(_throttle, "60 per 10 second")
    #: Where throttle and leases are kept. "memory://": in this process; redis: shared by processes and hosts.
    storage_uri: str = _key(_storage_uri, "memory://", secret=True)
    #: Origins whose scripts may read responses, without credentials. Empty: none but the own.
    cors_origins: tuple[str, ...] = _key(_origins, ("*",))
    #: How many proxies in front are believed about the client's address. 0: none, the peer is the client.
    trusted_proxies: int = _key(_count, 0)
    #: Open relayed streams of this process. 0: no limit.
    max_streams: int = _key(_count, 2000)
    #: Open relayed streams of one client. 0: no limit.
    max_streams_per_client: int = _key(_count, 32)
    #: Longest request body, bytes.
    max_body: int = _key(_positive_count, 10 * 1024 * 1024)
    #: Seconds until an upstream must be connected, its name looked up and TLS agreed.
    connect_timeout: float = _key(_positive_seconds, 5.0)
    #: Seconds until the upstream's head must be there. 0: no limit.
    response_timeout: float = _key(_seconds, 600.0)
    #: Seconds between two reads of a stream. 0: no limit.
    idle_timeout: float = _key(_seconds, 300.0)
    #: Seconds a client may take no byte at all, and its request body may take to arrive. 0: no limit.
    send_timeout: float = _key(_seconds, 30.0)
    #: Seconds the longest stream may live. 0: no limit.
    max_duration: float = _key(_seconds, 0.0)
    #: PEM file of authorities trusted for upstreams beside the usual ones. "": none.
    ca_file: str = _key(_file, "")
    #: Whether `GET /metrics` is served.
    metrics: bool = _key(_metrics, False)
    #: The form of the service's log lines: "text", or "json" for an object a line. A site forms its log itself.
    log_format: str = _key(_log_format, "text")
    #: Directory of the sockets by which `flask sse streams` and `flask sse end` reach workers; mode 0700. "": none.
    control_dir: str = _key(_control_directory, "")
    #: Seconds of silence after which an own stream sends a comment. 0: never.
    heartbeat: float = _key(_seconds, 15.0)
    #: Seconds of silence after which a relayed stream is given a comment between two events. 0: never.
    relay_heartbeat: float = _key(_seconds, 0.0)
    #: Seconds for which a recorded response is kept after its end, unless its client wants less. 0: none is recorded.
    resume_ttl: int = _key(_count, 300)
    #: Seconds for which a recording goes on without any reader, unless its client names another. 0: it ends at once.
    resume_leave: float = _key(_seconds, 60.0)
    #: Most seconds for which a client may let a recording go on without any reader.
    resume_leave_max: float = _key(_seconds, 600.0)
    #: Bytes that are kept of one recording; older ones are dropped.
    resume_max_bytes: int = _key(_positive_count, 4 * 1024 * 1024)
    #: Bytes that all recordings of a process may take in its memory.
    resume_memory: int = _key(_positive_count, 256 * 1024 * 1024)

    #: Events that are kept of each channel.
    channel_history: int = _key(_positive_count, 256)
    #: Seconds for which events of a channel are kept.
    channel_history_seconds: int = _key(_positive_count, 300)
    #: Bytes of events that are kept of each channel.
    channel_history_bytes: int = _key(_positive_count, 1024 * 1024)
    #: Bytes of the longest event that can be published.
    channel_max_event: int = _key(_positive_count, 64 * 1024)
    #: Open streams of channels in this process. 0: no limit.
    max_readers: int = _key(_count, 10_000)
    #: Open streams of channels of one client. 0: no limit.
    max_readers_per_client: int = _key(_count, 32)

    @classmethod
    def checks(cls) -> dict[str, Callable[[object], Any]]:
        """Return for each key what checks its value."""
        return {PREFIX + known.name.upper(): known.metadata["check"] for known in fields(cls)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings that a Flask configuration holds.

        :param config: all keys of the app; those of others are left alone.
        :raises SettingError: for a misspelt key or a bad value; the message names the key and shows no secret.
        """
        checks = cls.checks()
        values = {}
        for key, value in config.items():
            meant = find_key(key, checks)
            if meant is None:
                # Another extension's, such as Flask-SSE's SSE_REDIS_URL.
                continue
            if key != meant:
                raise SettingError(f"{key} is not a setting: did you mean {meant}?")
            check_below(key, value, checks)
            try:
                values[key.removeprefix(PREFIX).lower()] = checks[key](value)
            except ValueError as error:
                # The text of the former begins with where below the key it is.
                raise SettingError(f"{key}{'' if isinstance(error, InvalidEntry) else ': '}{error}") from error
        return cls(**values)

    @property
    def has_credentials(self) -> bool:
        """Whether there are clients with credentials of the gateway's own."""
        return bool(self.passcodes or self.clients_file or self.jwt)

    def is_open(self, *, has_authorize: bool) -> bool:
        """Return whether requests are admitted without a credential.

        :raises ValueError: if so, and clients could use upstream keys or any public target, unless `SSE_OPEN` is set.
        """
        if self.has_credentials or has_authorize:
            return False
        at_stake = self.allow_public_targets or any(upstream.has_keys for upstream in self.upstreams or ())
        if at_stake and not self.open:
            raise ValueError(
                "SSE_PASSCODES is empty, so every client could use the upstreams' keys or call any public target: "
                "set SSE_PASSCODES, or SSE_OPEN = True if that is meant"
            )
        return True
