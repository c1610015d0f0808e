"""The settings: every `SSE_` key of the configuration, in one frozen dataclass, checked at start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import limits
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from .protocol.target.entry import InvalidEntry, Upstream, parse_upstream
from .relay.control import MAX_PATH, check_directory
from .relay.redis import check_storage_uri
from .setting_name import PREFIX as PREFIX
from .setting_name import SettingError as SettingError
from .setting_name import check_below, find_key

CLIENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Signatures by keys that may be published.
_ALGORITHMS = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {"EdDSA"}
# With any scheme: apps and extensions have their own, such as tauri://localhost and chrome-extension://<id>.
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def _upstreams(value: object) -> tuple[Upstream, ...]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must be an object of upstreams by name, with at least one")
    return tuple(parse_upstream(name, entry) for name, entry in value.items())


def _passcodes(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must be an object: client name -> passcode")
    for name, passcode in value.items():
        if not isinstance(name, str) or not CLIENT_NAME.fullmatch(name):
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


def _metrics(value: bool) -> bool:
    if value and find_spec("prometheus_client") is None:
        raise ValueError("needs a package that is not installed: pip install 'flask-sse-relay[metrics]'")
    return value


def _file(value: str) -> str:
    if value and not Path(value).is_file():
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


# The descriptions are what an error says: a value "must be ...".
Flag = Annotated[bool, Field(description="true or false")]
Count = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
PositiveCount = Annotated[int, Field(gt=0, description="a whole number, more than 0")]
Seconds = Annotated[float, Field(ge=0, lt=1e9, description="a number of seconds, 0 or more")]
PositiveSeconds = Annotated[float, Field(gt=0, lt=1e9, description="a number of seconds, more than 0")]
LogFormat = Annotated[Literal["text", "json"], Field(description='"text" or "json"')]
File = Annotated[str, AfterValidator(_file), Field(description="the path of a file that is there")]
Metrics = Annotated[bool, AfterValidator(_metrics), Field(description="true or false")]

#: No 1 for true and no "60" for 60, and no value in an error: it may be a secret.
_STRICT = ConfigDict(strict=True, hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked settings of one app; the key of `idle_timeout` is `SSE_IDLE_TIMEOUT`, and so on."""

    #: What may be called: name -> URL, or name -> {"url": ..., "headers": {...}}. None: the built-in demonstration.
    upstreams: Annotated[tuple[Upstream, ...] | None, PlainValidator(_upstreams)] = field(default=None, repr=False)
    #: Whether any public https target is allowed besides the table.
    allow_public_targets: Flag = False
    #: Client name -> passcode. Empty, and no `authorize` callback: every client may call.
    passcodes: Annotated[Mapping[str, str], PlainValidator(_passcodes)] = field(default_factory=dict, repr=False)
    #: TOML file of further clients, with what each may do; it is read again when it changes. "": none.
    clients_file: File = ""
    #: JSON Web Tokens that are taken as credentials: {"keys": URL or file, "issuer": ..., "audience": ...}. {}: none.
    jwt: Annotated[Mapping[str, Any], PlainValidator(_jwt)] = field(default_factory=dict)
    #: Tokens that each client may spend in a fixed window, such as "2000000 per 1 day". "": no limit.
    quota: Annotated[str, PlainValidator(_quota)] = ""
    #: Whether what upstreams report of tokens is read, logged and counted.
    usage: Flag = False
    #: Whether it is meant that everybody may call although upstream keys or open targets are at stake.
    open: Flag = False
    #: Calls of each relay endpoint per client, in the words of Flask-Limiter. "": no throttle.
    throttle: Annotated[str, PlainValidator(_throttle)] = "60 per 10 second"
    #: Where throttle and leases are kept. "memory://": in this process; redis: shared by processes and hosts.
    storage_uri: Annotated[str, PlainValidator(_storage_uri)] = field(default="memory://", repr=False)
    #: Origins whose scripts may read responses, without credentials. Empty: none but the own.
    cors_origins: Annotated[tuple[str, ...], PlainValidator(_origins)] = ("*",)
    #: How many proxies in front are believed about the client's address. 0: none, the peer is the client.
    trusted_proxies: Count = 0
    #: Open relayed streams of this process. 0: no limit.
    max_streams: Count = 2000
    #: Open relayed streams of one client. 0: no limit.
    max_streams_per_client: Count = 32
    #: Longest request body, bytes.
    max_body: PositiveCount = 10 * 1024 * 1024
    #: Seconds until an upstream must be connected, its name looked up and TLS agreed.
    connect_timeout: PositiveSeconds = 5.0
    #: Seconds until the upstream's head must be there. 0: no limit.
    response_timeout: Seconds = 600.0
    #: Seconds between two reads of a stream. 0: no limit.
    idle_timeout: Seconds = 300.0
    #: Seconds a client may take no byte at all, and its request body may take to arrive. 0: no limit.
    send_timeout: Seconds = 30.0
    #: Seconds the longest stream may live. 0: no limit.
    max_duration: Seconds = 0.0
    #: PEM file of authorities trusted for upstreams beside the usual ones. "": none.
    ca_file: File = ""
    #: Whether `GET /metrics` is served.
    metrics: Metrics = False
    #: The form of the service's log lines: "text", or "json" for an object a line. A site forms its log itself.
    log_format: LogFormat = "text"
    #: Directory of the sockets by which `flask sse streams` and `flask sse end` reach workers; mode 0700. "": none.
    control_dir: Annotated[str, PlainValidator(_control_directory)] = ""
    #: Seconds of silence after which an own stream sends a comment. 0: never.
    heartbeat: Seconds = 15.0
    #: Seconds of silence after which a relayed stream is given a comment between two events. 0: never.
    relay_heartbeat: Seconds = 0.0
    #: Seconds for which a recorded response is kept after its end, unless its client wants less. 0: none is recorded.
    resume_ttl: Count = 300
    #: Seconds for which a recording goes on without any reader, unless its client names another. 0: it ends at once.
    resume_leave: Seconds = 60.0
    #: Most seconds for which a client may let a recording go on without any reader.
    resume_leave_max: Seconds = 600.0
    #: Bytes that are kept of one recording; older ones are dropped.
    resume_max_bytes: PositiveCount = 4 * 1024 * 1024
    #: Bytes that all recordings of a process may take in its memory.
    resume_memory: PositiveCount = 256 * 1024 * 1024

    #: Events that are kept of each channel.
    channel_history: PositiveCount = 256
    #: Seconds for which events of a channel are kept.
    channel_history_seconds: PositiveCount = 300
    #: Bytes of events that are kept of each channel.
    channel_history_bytes: PositiveCount = 1024 * 1024
    #: Bytes of the longest event that can be published.
    channel_max_event: PositiveCount = 64 * 1024
    #: Open streams of channels in this process. 0: no limit.
    max_readers: Count = 10_000
    #: Open streams of channels of one client. 0: no limit.
    max_readers_per_client: Count = 32

    @classmethod
    def keys(cls) -> list[str]:
        """Return the keys of all settings."""
        return [PREFIX + known.name.upper() for known in fields(cls)]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings that a Flask configuration holds.

        :param config: all keys of the app; those of others are left alone.
        :raises SettingError: for a misspelt key or a bad value; the message names the key and shows no secret.
        """
        keys, types, values = cls.keys(), get_type_hints(cls, include_extras=True), {}
        for key, value in config.items():
            meant = find_key(key, keys)
            if meant is None:
                # Another extension's, such as Flask-SSE's SSE_REDIS_URL.
                continue
            if key != meant:
                raise SettingError(f"{key} is not a setting: did you mean {meant}?")
            check_below(key, value, keys)
            name = key.removeprefix(PREFIX).lower()
            try:
                values[name] = TypeAdapter(types[name], config=_STRICT).validate_python(value)
            except ValidationError as error:
                # What a check of this module has raised, else what the type wants.
                cause = error.errors()[0].get("ctx", {}).get("error")
                wrong = cause or f"must be {types[name].__metadata__[-1].description}, not {value!r}"
                # The text of the former begins with where below the key it is.
                raise SettingError(f"{key}{'' if isinstance(cause, InvalidEntry) else ': '}{wrong}") from cause
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
