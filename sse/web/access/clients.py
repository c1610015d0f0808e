"""Clients by their passcode: those of SSE_PASSCODES, and those of SSE_CLIENTS_FILE, which may change at any time."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import limits
import pydantic
from limits import RateLimitItem
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from ...protocol.policy import Route, parse_route
from ...settings import CLIENT_NAME

#: Seconds between two looks at the file.
CHECK_INTERVAL = 5.0

log = logging.getLogger("sse")


def parse_quota(text: str) -> RateLimitItem:
    """Return the amount and the window that `"500000 per 1 day"` names.

    :raises ValueError: if it names none, or several.
    """
    items = limits.parse_many(text)
    if len(items) != 1 or items[0].amount < 1:
        raise ValueError("must be one amount and one window, such as '500000 per 1 day'")
    return items[0]


def _check_throttle(text: str) -> str:
    if text:
        limits.parse_many(text)
    return text


class _Entry(BaseModel):
    """A table of the clients file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$")]
    expires: AwareDatetime | None = None
    upstreams: list[str] | None = None
    allow: list[Annotated[str, AfterValidator(parse_route)]] = []
    models: list[Annotated[str, Field(min_length=1)]] = []
    throttle: Annotated[str, AfterValidator(_check_throttle)] | None = None
    max_streams: Annotated[int, Field(ge=0)] | None = None
    quota: Annotated[str, AfterValidator(parse_quota)] | None = None


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client that has a name, and what it may do; None is what the settings say for all."""

    name: str
    #: SHA-256 of its passcode; b"" for one that another credential names.
    digest: bytes = b""
    #: When its credential ends, in seconds since 1970 (UTC).
    expires: float | None = None
    #: Names of the upstreams that it may call.
    upstreams: frozenset[str] | None = None
    #: Routes that it may call; none are all.
    routes: tuple[Route, ...] = ()
    #: Models that it may name; none are all.
    models: tuple[str, ...] = ()
    #: Calls, in the words of Flask-Limiter.
    throttle: str | None = None
    #: Open streams; 0: no limit.
    max_streams: int | None = None
    #: Tokens in a fixed window.
    quota: RateLimitItem | None = None
    #: Whether its credential may end while a stream is open.
    is_temporary: bool = True

    def has_expired(self) -> bool:
        """Return whether its credential has ended."""
        return self.expires is not None and time.time() >= self.expires


def encode(passcode: str) -> bytes:
    """Return a passcode's bytes."""
    return passcode.encode("utf-8", "surrogatepass")


def digest(passcode: bytes) -> bytes:
    """Return what a passcode is looked up by."""
    return hashlib.sha256(passcode).digest()


def parse_clients(text: str) -> dict[str, Client]:
    """Return the clients that a TOML document describes, by name.

    :raises ValueError: if it describes none; the message names the client and the key, and shows no value.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Only where, for what stands there may be a secret.
        where = re.search(r"\(at [^()]*\)$", str(error))
        raise ValueError(f"is not TOML {where[0] if where else ''}".rstrip()) from None
    clients = {name: _parse_client(name, table) for name, table in tables.items()}
    _by_digest(clients.values())
    return clients


def _parse_client(name: str, table: object) -> Client:
    if not CLIENT_NAME.fullmatch(name):
        raise ValueError(f"{name[:64]!r}: a client name is 1 to 64 of A-Z a-z 0-9 . _ -")
    try:
        entry = _Entry.model_validate(table)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(step) for step in (name, *first["loc"]))
        raise ValueError(f"{where}: {first['msg']}") from None
    return Client(
        name=name,
        digest=bytes.fromhex(entry.sha256),
        expires=None if entry.expires is None else entry.expires.timestamp(),
        upstreams=None if entry.upstreams is None else frozenset(entry.upstreams),
        routes=tuple(entry.allow),  # type: ignore[arg-type]  # the validator has made them of the texts
        models=tuple(entry.models),
        throttle=entry.throttle,
        max_streams=entry.max_streams,
        quota=entry.quota,  # type: ignore[arg-type]  # likewise
    )


class Directory:
    """All clients that have a passcode; the file is read again when it has changed.

    :param passcodes: SSE_PASSCODES, by name.
    :param path: of SSE_CLIENTS_FILE; None if there is none.
    :raises ValueError: if the file cannot be used; later, the last version that could is kept.
    """

    def __init__(self, passcodes: Mapping[str, str], path: Path | None) -> None:
        self._fixed = [
            Client(name=name, digest=digest(encode(code)), is_temporary=False) for name, code in passcodes.items()
        ]
        self._path = path
        self._lock = threading.Lock()
        self._version: tuple[int, ...] = ()
        self._looked = time.monotonic()
        self._by_digest = self._index({})
        if path is not None:
            self._version = _version(path)
            self._by_digest = self._index(_read(path))

    def __bool__(self) -> bool:
        """Return whether there are clients with a passcode."""
        return bool(self._fixed) or self._path is not None

    def find(self, passcode: bytes) -> Client | None:
        """Return the client that has a passcode, None if there is none or it has expired.

        The digest is looked up, so the time that it takes reveals nothing of the passcodes.
        """
        self._refresh()
        client = self._by_digest.get(digest(passcode))
        return None if client is None or client.has_expired() else client

    def is_valid(self, client: Client) -> bool:
        """Return whether a client's credential still stands; for streams that are open."""
        if not client.digest:
            return not client.has_expired()
        self._refresh()
        known = self._by_digest.get(client.digest)
        return known is not None and known.name == client.name and not known.has_expired()

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked < CHECK_INTERVAL or not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = now
            version = _version(self._path)
            if version != self._version:
                self._version = version
                self._by_digest = self._index(_read(self._path))
        except ValueError as error:
            log.error("SSE_CLIENTS_FILE: %s; the clients before stay", error)
        finally:
            self._lock.release()

    def _index(self, clients: Mapping[str, Client]) -> dict[bytes, Client]:
        taken = {client.name for client in self._fixed} & clients.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: also in SSE_PASSCODES")
        return _by_digest([*self._fixed, *clients.values()])


def _by_digest(clients: Iterable[Client]) -> dict[bytes, Client]:
    found: dict[bytes, Client] = {}
    for client in clients:
        if client.digest in found:
            raise ValueError(f"{client.name} and {found[client.digest].name} have the same passcode")
        found[client.digest] = client
    return found


def _version(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; () if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> dict[str, Client]:
    try:
        return parse_clients(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
