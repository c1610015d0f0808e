"""The upstream table: what may be called, with which fields, and at which addresses."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import TargetNotAllowed
from .address import is_literal, is_local, is_public, parse_literal
from .entry import Upstream
from .host import is_dns
from .parse import Target, join_target


class UpstreamTable:
    """What may be called: the allow-list, the key store and the routing table in one.

    :param allow_public: whether any public https target is allowed besides.
    """

    def __init__(self, upstreams: Iterable[Upstream], *, allow_public: bool = False) -> None:
        # The longest base first: it is the most specific.
        self._upstreams = sorted(upstreams, key=lambda upstream: -len(upstream.base.path))
        self._by_name = {upstream.name: upstream for upstream in self._upstreams}
        self._hosts = frozenset(base.host for upstream in self._upstreams for base in (upstream.base, *upstream.bases))
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
