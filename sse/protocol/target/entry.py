"""The entries of the upstream table, as an operator writes them."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidRequest, TargetNotAllowed
from ..field import is_field_name, is_field_value, is_forwardable, is_passable
from ..policy import Route, parse_route
from .address import is_literal
from .parse import Target, join_target, parse_target

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_KEYS = {"url", "headers", "response_headers", "allow", "require_usage", "targets", "retry", "affinity"}
_TARGET_KEYS = {"id", "weight", "url", "headers"}

Headers = tuple[tuple[str, str], ...]


class InvalidEntry(ValueError):
    """A value of an entry is wrong.

    :param where: its key below the table, such as `.openai.targets[1].weight`.
    """

    def __init__(self, where: str, text: str) -> None:
        super().__init__(text)
        self.where = where


@dataclass(frozen=True, kw_only=True)
class UpstreamTarget:
    """One of several targets of an upstream: another key, another URL, or both.

    :param base: in the place of the upstream's.
    :param headers: fields that replace those of the upstream and of the client; secrets, so in no repr.
    """

    id: str
    base: Target
    weight: float = 1.0
    headers: Headers = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An entry of the table.

    :param base: covers the targets below it.
    :param headers: fields that replace the client's; secrets, so in no repr.
    :param response_headers: names in lower case of more fields of its responses that pass to clients.
    """

    name: str
    base: Target
    headers: Headers = field(default=(), repr=False)
    response_headers: frozenset[str] = frozenset()
    #: What may be called below the base; none are all.
    routes: tuple[Route, ...] = ()
    #: Whether streams of OpenAI's chat dialect must be requested with their usage.
    require_usage: bool = False
    #: What is called in the place of the base; none: the base itself.
    targets: tuple[UpstreamTarget, ...] = ()
    #: Statuses after which the next target is tried.
    retry: frozenset[int] = frozenset()
    #: What keeps requests to one target: "client", the name of a field in lower case, or "none".
    affinity: str = "client"

    @property
    def bases(self) -> dict[Target, list[str]]:
        """What is called, with the ids of the targets there."""
        found: dict[Target, list[str]] = {} if self.targets else {self.base: []}
        for target in self.targets:
            found.setdefault(target.base, []).append(target.id)
        return found

    @property
    def has_keys(self) -> bool:
        """Whether requests get fields that clients do not know."""
        return bool(self.headers or any(target.headers for target in self.targets))

    def covers(self, target: Target) -> bool:
        """Return whether scheme, host, port and whole path segments match."""
        base = self.base
        if (base.scheme, base.host, base.port) != (target.scheme, target.host, target.port):
            return False
        prefix = base.matched_path.rstrip("/")
        return target.matched_path == prefix or target.matched_path.startswith(prefix + "/")

    def locate(self, target: Target, base: Target) -> Target:
        """Return what a target that the upstream covers is below the base of one of its targets.

        :raises TargetNotAllowed: if there is no such URL.
        """
        if base is self.base:
            return target
        # By segments, because the same path may be written with escapes that mean nothing.
        depth = self.base.matched_path.rstrip("/").count("/") + 1
        return join_target(base, "".join(target.path.split("/", depth)[depth:]), target.query)


def parse_upstream(name: object, entry: object) -> Upstream:
    """Return the upstream that a table's entry describes: a URL, or an object with one.

    :raises ValueError: if it is none; the message names it, and shows no field's value.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} is not 1 to 64 of A-Z a-z 0-9 . _ -, or begins with a dot")
    if isinstance(entry, str):
        entry = {"url": entry}
    if not isinstance(entry, Mapping) or not set(entry) <= _KEYS or not isinstance(entry.get("url"), str):
        raise ValueError(f"{name!r} must be a URL, or an object of url and, if need be, {', '.join(sorted(_KEYS))}")
    base = _parse_base(name, entry["url"])
    return Upstream(
        name=name,
        base=base,
        headers=_parse_headers(name, entry.get("headers", {})),
        response_headers=_parse_response_headers(name, entry.get("response_headers", [])),
        routes=_parse_allow(name, entry.get("allow", [])),
        require_usage=_parse_flag(name, "require_usage", entry.get("require_usage", False)),
        **_parse_choice(name, base, entry),
    )


def _parse_base(name: str, url: str) -> Target:
    try:
        base = parse_target(url)
    except (InvalidRequest, TargetNotAllowed) as error:
        raise ValueError(f"the URL of {name!r} is not one that can be called") from error
    if base.query:
        raise ValueError(f"the URL of {name!r} must have no query")
    if is_literal(base.host) and _is_unusable(ipaddress.ip_address(base.host)):
        raise ValueError(f"the URL of {name!r} names an address that no server has")
    return base


def _parse_allow(name: str, allow: object) -> tuple[Route, ...]:
    if not isinstance(allow, list | tuple) or not all(isinstance(route, str) for route in allow):
        raise ValueError(f"allow of {name!r} must be a list of methods with paths")
    try:
        return tuple(map(parse_route, allow))
    except ValueError as error:
        raise ValueError(f"allow of {name!r}: {error}") from error


def _parse_flag(name: str, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} of {name!r} must be true or false")
    return value


def _is_unusable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved)


def _parse_headers(name: str, headers: object) -> Headers:
    if not isinstance(headers, Mapping):
        raise ValueError(f"the headers of {name!r} must be an object")
    for field_name, value in headers.items():
        if not isinstance(field_name, str) or not is_field_name(field_name) or not is_forwardable(field_name):
            raise ValueError(f"the headers of {name!r} have a name that cannot be sent: {field_name!r}")
        if not isinstance(value, str) or not is_field_value(value):
            raise ValueError(f"the header {field_name} of {name!r} has a value that HTTP cannot carry")
    if len({field_name.lower() for field_name in headers}) < len(headers):
        raise ValueError(f"the headers of {name!r} name one field twice")
    return tuple(headers.items())


def _parse_response_headers(name: str, headers: object) -> frozenset[str]:
    if not isinstance(headers, list | tuple) or not all(isinstance(field_name, str) for field_name in headers):
        raise ValueError(f"the response_headers of {name!r} must be a list of field names")
    for field_name in headers:
        if not is_passable(field_name):
            raise ValueError(f"the response_headers of {name!r} list a field that cannot pass: {field_name!r}")
    return frozenset(field_name.lower() for field_name in headers)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Give the errors of a block the key at which they are."""
    try:
        yield
    except InvalidEntry:
        raise
    except ValueError as error:
        raise InvalidEntry(where, str(error)) from error


def _parse_choice(name: str, base: Target, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry says of several targets, for `Upstream`."""
    if "targets" not in entry:
        for key in ("retry", "affinity"):
            if key in entry:
                raise InvalidEntry(f".{name}.{key}", "is for an upstream that has targets")
        return {}
    with _at(f".{name}.targets"):
        targets = _parse_targets(name, base, entry["targets"])
    with _at(f".{name}.retry"):
        retry = _parse_retry(entry.get("retry", []))
    with _at(f".{name}.affinity"):
        affinity = _parse_affinity(entry.get("affinity", "client"))
    return {"targets": targets, "retry": retry, "affinity": affinity}


def _parse_targets(name: str, base: Target, given: object) -> tuple[UpstreamTarget, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("must be a list of objects, with at least one")
    targets: list[UpstreamTarget] = []
    for index, entry in enumerate(given):
        where = f".{name}.targets[{index}]"
        with _at(where):
            target = _parse_one(name, base, entry, where)
        if target.id in {known.id for known in targets}:
            raise InvalidEntry(f"{where}.id", "is that of another target")
        targets.append(target)
    return tuple(targets)


def _parse_one(name: str, base: Target, entry: object, where: str) -> UpstreamTarget:
    if not isinstance(entry, Mapping) or not set(entry) <= _TARGET_KEYS:
        raise ValueError("must be an object of id and, if need be, headers, url and weight")
    if not isinstance(id_ := entry.get("id"), str) or not _NAME.fullmatch(id_):
        # Not shown, because id and key may be swapped.
        raise InvalidEntry(f"{where}.id", "must be 1 to 64 of A-Z a-z 0-9 . _ -, and not begin with a dot")
    weight, url = entry.get("weight", 1), entry.get("url")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise InvalidEntry(f"{where}.weight", "must be a number above 0")
    if "url" in entry and not isinstance(url, str):
        raise InvalidEntry(f"{where}.url", "must be a URL")
    with _at(f"{where}.url"):
        base = base if url is None else _parse_base(id_, url)
    with _at(f"{where}.headers"):
        headers = _parse_headers(id_, entry.get("headers", {}))
    return UpstreamTarget(id=id_, base=base, weight=float(weight), headers=headers)


def _parse_retry(given: object) -> frozenset[int]:
    if not isinstance(given, list | tuple) or not all(type(status) is int and 400 <= status < 600 for status in given):
        raise ValueError("must be a list of statuses from 400 to 599")
    return frozenset(given)


def _parse_affinity(given: object) -> str:
    if not isinstance(given, str) or not is_field_name(given) or not is_forwardable(given):
        raise ValueError('must be "client", "none", or the name of a field that goes to upstreams')
    return given.lower()
