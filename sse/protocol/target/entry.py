"""The entries of the upstream table, as an operator writes them."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
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
        super().__init__(f"{where}: {text}")


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


def parse_upstream(name: object, entry: Any) -> Upstream:
    """Return the upstream that a table's entry describes: a URL, or an object with one.

    :raises InvalidEntry: if it is none; the message shows no field's value.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidEntry("", f"the name {name!r} is not 1 to 64 of A-Z a-z 0-9 . _ -, or begins with a dot")
    where = f".{name}"
    if isinstance(entry, str):
        entry = {"url": entry}
    is_object = isinstance(entry, Mapping) and set(entry) <= _KEYS and isinstance(entry.get("url"), str)
    _require(is_object, where, f"must be a URL, or an object of url and, if need be, {', '.join(sorted(_KEYS))}")
    base, require_usage = _parse_base(f"{where}.url", entry["url"]), entry.get("require_usage", False)
    _require(isinstance(require_usage, bool), f"{where}.require_usage", "must be true or false")
    if "targets" not in entry:
        for key in ("retry", "affinity"):
            _require(key not in entry, f"{where}.{key}", "is for an upstream that has targets")
    return Upstream(
        name=name,
        base=base,
        headers=_parse_headers(f"{where}.headers", entry.get("headers", {})),
        response_headers=_parse_response_headers(f"{where}.response_headers", entry.get("response_headers", [])),
        routes=_parse_allow(f"{where}.allow", entry.get("allow", [])),
        require_usage=require_usage,
        targets=_parse_targets(f"{where}.targets", base, entry["targets"]) if "targets" in entry else (),
        retry=_parse_retry(f"{where}.retry", entry.get("retry", [])),
        affinity=_parse_affinity(f"{where}.affinity", entry.get("affinity", "client")),
    )


def _require(is_well: bool, where: str, text: str) -> None:
    if not is_well:
        raise InvalidEntry(where, text)


def _parse_base(where: str, url: str) -> Target:
    try:
        base = parse_target(url)
    except (InvalidRequest, TargetNotAllowed) as error:
        raise InvalidEntry(where, "is not a URL that can be called") from error
    _require(not base.query, where, "must have no query")
    if is_literal(base.host):
        address = ipaddress.ip_address(base.host)
        is_unusable = address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved)
        _require(not is_unusable, where, "names an address that no server has")
    return base


def _parse_allow(where: str, allow: Any) -> tuple[Route, ...]:
    _require(_is_list(allow, str), where, "must be a list of methods with paths")
    try:
        return tuple(map(parse_route, allow))
    except ValueError as error:
        raise InvalidEntry(where, str(error)) from error


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is kind for item in value)


def _parse_headers(where: str, headers: Any) -> Headers:
    _require(isinstance(headers, Mapping), where, "must be an object")
    for name, value in headers.items():
        can_be_sent = isinstance(name, str) and is_field_name(name) and is_forwardable(name)
        _require(can_be_sent, where, f"has a name that cannot be sent: {name!r}")
        _require(isinstance(value, str) and is_field_value(value), where, f"HTTP cannot carry the value of {name}")
    _require(len({name.lower() for name in headers}) == len(headers), where, "names one field twice")
    return tuple(headers.items())


def _parse_response_headers(where: str, headers: Any) -> frozenset[str]:
    _require(_is_list(headers, str), where, "must be a list of field names")
    for name in headers:
        _require(is_passable(name), where, f"lists a field that cannot pass: {name!r}")
    return frozenset(name.lower() for name in headers)


def _parse_targets(where: str, base: Target, given: Any) -> tuple[UpstreamTarget, ...]:
    _require(isinstance(given, list | tuple) and bool(given), where, "must be a list of objects, with at least one")
    targets = tuple(_parse_one(f"{where}[{index}]", base, entry) for index, entry in enumerate(given))
    ids = [target.id for target in targets]
    for index, id_ in enumerate(ids):
        _require(id_ not in ids[:index], f"{where}[{index}].id", "is that of another target")
    return targets


def _parse_one(where: str, base: Target, entry: Any) -> UpstreamTarget:
    is_object = isinstance(entry, Mapping) and set(entry) <= _TARGET_KEYS
    _require(is_object, where, "must be an object of id and, if need be, headers, url and weight")
    id_, weight, url = entry.get("id"), entry.get("weight", 1), entry.get("url", "")
    # Not shown, because id and key may be swapped.
    is_name = isinstance(id_, str) and _NAME.fullmatch(id_) is not None
    _require(is_name, f"{where}.id", "must be 1 to 64 of A-Z a-z 0-9 . _ -, and not begin with a dot")
    is_weight = type(weight) in (int, float) and 0 < weight < math.inf
    _require(is_weight, f"{where}.weight", "must be a number above 0")
    _require(isinstance(url, str), f"{where}.url", "must be a URL")
    return UpstreamTarget(
        id=id_,
        base=_parse_base(f"{where}.url", url) if "url" in entry else base,
        weight=float(weight),
        headers=_parse_headers(f"{where}.headers", entry.get("headers", {})),
    )


def _parse_retry(where: str, given: Any) -> frozenset[int]:
    is_well = _is_list(given, int) and all(400 <= status < 600 for status in given)
    _require(is_well, where, "must be a list of statuses from 400 to 599")
    return frozenset(given)


def _parse_affinity(where: str, given: Any) -> str:
    is_well = isinstance(given, str) and is_field_name(given) and is_forwardable(given)
    _require(is_well, where, 'must be "client", "none", or the name of a field that goes to upstreams')
    return str(given).lower()
