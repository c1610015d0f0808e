"""A service and an upstream in its table, which many tests share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .service import RawClient, Service, call, forward
from .upstream import Script, Upstream


@dataclass
class Relay:
    """A service without throttle and an upstream in its table, as `test`; one pair serves all tests."""

    service: Service
    upstream: Upstream
    _clients: list[RawClient] = field(default_factory=list)

    def forward(self, script: Script, path: str = "/", **options: Any) -> RawClient:
        """Let the upstream answer by `script`, and send `POST /forward-sse` for it; see `service.forward`."""
        self.upstream.script = script
        self._clients.append(forward(self.service, self.upstream.url + path, **options))
        return self._clients[-1]

    def call(self, script: Script, method: str, path: str = "", **options: Any) -> RawClient:
        """Let the upstream answer by `script`, and call `/upstream/test/<path>`; see `service.call`."""
        self.upstream.script = script
        self._clients.append(call(self.service, method, f"/upstream/test/{path}", **options))
        return self._clients[-1]

    def settle(self) -> None:
        """Close what the test has opened, and raise what went wrong in a script."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.upstream.settle()
