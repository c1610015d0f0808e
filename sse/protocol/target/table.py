"""The upstream table: what may be called, with which fields, and at which addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...errors import InvalidRequest, TargetNotAllowed
from ..field import is_field_name, is_field_value, is_forwardable, is_passable
from ..policy import Route, parse_route
from .address import is_literal, is_local, is_public, parse_literal
from .host import is_dns
from .parse import Target, join_target, parse_target


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An entry of the table.

    :param base: covers the targets below it.
    :param headers: fields that replace the client's; secrets, so in no repr.
    :param response_headers: names in lower case of more fields of its responses that pass to clients.
    """

    name: str
    base: Target
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    response_headers: frozenset[str] = frozenset()
    #: What may be called below the base; none are all.
    routes: tuple[Route, ...] = ()
    #: Whether streams of OpenAI's chat dialect have to be asked for with their usage.
    require_usage: bool = False

    def covers(self, target: Target) -> bool:
        """Return whether scheme, host, port and whole path segments match."""
        base = self.base
        if (base.scheme, base.host, base.port) != (target.scheme, target.host, target.port):
            return False
        prefix = base.matched_path.rstrip("/")
        return target.matched_path == prefix or target.matched_path.startswith(prefix + "/")


def parse_upstream(name: object, entry: object) -> Upstream:
    """Return the upstream that a table's entry describes: a URL, or an object with one.

    :raises ValueError: if it is none; the message names it, and shows no field's value.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(f"the name {name!r} is not 1 to 64 of A-Z a-z 0-9 . _ -, or begins with a dot")
    if isinstance(entry, str):
        entry = {"url": entry}
    keys = {"url", "headers", "response_headers", "allow", "require_usage"}
    if not isinstance(entry, Mapping) or not set(entry) <= keys or not isinstance(entry.get("url"), str):
        raise ValueError(f"{name!r} must be a URL, or an object of url and, if need be, {', '.join(sorted(keys))}")
    try:
        base = parse_target(entry["url"])
    except (InvalidRequest, TargetNotAllowed) as error:
        raise ValueError(f"the URL of {name!r} is not one that can be called") from error
    if base.query:
        raise ValueError(f"the URL of {name!r} must have no query")
    if is_literal(base.host) and _is_unusable(ipaddress.ip_address(base.host)):
        raise ValueError(f"the URL of {name!r} names an address that no server has")
    return Upstream(
        name=name,
        base=base,
        headers=_parse_headers(name, entry.get("headers", {})),
        response_headers=_parse_response_headers(name, entry.get("response_headers", [])),
        routes=_parse_allow(name, entry.get("allow", [])),
        require_usage=_parse_flag(name, "require_usage", entry.get("require_usage", False)),
    )


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


def _parse_headers(name: str, headers: object) -> tuple[tuple[str, str], ...]:
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


class UpstreamTable:
    """What may be called: the allow-list, the key store and the routing table in one.

    :param allow_public: whether any public https target is allowed besides.
    """

    def __init__(self, upstreams: Iterable[Upstream], *, allow_public: bool = False) -> None:
        # The longest base first: it is the most specific.
        self._upstreams = sorted(upstreams, key=lambda upstream: -len(upstream.base.path))
        self._by_name = {upstream.name: upstream for upstream in self._upstreams}
        self._hosts = frozenset(upstream.base.host for upstream in self._upstreams)
        self._allow_public = allow_public

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(upstream.name for upstream in self._upstreams))

    def get(self, name: str) -> Upstream | None:
        return self._by_name.get(name)

    def match(self, target: Target) -> Upstream | None:
        """Return the upstream that covers a target, None for a public one.

        :raises TargetNotAllowed: if it is neither.
        """
        for upstream in self._upstreams:
            if upstream.covers(target):
                return upstream
        host = target.host
        if self._allow_public and target.scheme == "https" and (is_public(host) if is_literal(host) else is_dns(host)):
            return None
        # Without its path and query, which may hold a key.
        raise TargetNotAllowed(cause=f"no upstream covers {target.scheme}://{target.authority}")

    def join(self, upstream: Upstream, raw_path: str, raw_query: str) -> Target:
        """Return the target that a path and a query below an upstream's base mean.

        :raises TargetNotAllowed: if they lead out of it.
        """
        target = join_target(upstream.base, raw_path, raw_query)
        if not upstream.covers(target):
            raise TargetNotAllowed(cause=f"the path leads out of upstream {upstream.name}")
        return target

    def allows(self, host: str, address: str) -> bool:
        """Return whether a connection for a host may go to an address.

        An operator who names an address, or a name outside public DNS, means it. A public name must lead to
        public addresses.
        """
        if is_literal(host):
            return parse_literal(address) == host and (self.lists(host) or is_public(host))
        if self.lists(host) and not is_dns(host) and is_local(address):
            return True
        return is_public(address)

    def lists(self, host: str) -> bool:
        """Return whether the operator named a host."""
        return host in self._hosts
