"""The requests adapter: connects to the checked address; `iter_content` yields bytes as they arrive.

requests and urllib3 keep their work (pools, TLS, the request's bytes, the head's fields). What is ours sits at three
places below them: how a connection is made (`dial`), how a head is read (`connection`), how a body is read (`body`).
"""

from __future__ import annotations

import ssl
from typing import Any

import certifi
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager

from ..protocol.target import Target
from .body import RawBody
from .connection import connection_classes
from .dial import Dialer


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Return what verifies upstreams.

    :param ca_file: PEM file of further authorities, or "".
    """
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


class RelayAdapter(HTTPAdapter):
    """Sends requests whose `target` was parsed and matched, over connections that were judged.

    Called without a Session: no cookies, no redirects, no netrc, no proxies of the environment, no hooks.

    :param dialer: makes the connections.
    :param pool_size: most connections kept for one host.
    :param ca_file: PEM file of further authorities, or "".
    """

    def __init__(self, dialer: Dialer, *, pool_size: int, ca_file: str = "") -> None:
        self._dialer = dialer
        # One context for all connections: requests reads the authorities anew for each, 20 ms of CPU every time.
        self._tls = tls_context(ca_file)
        super().__init__(pool_connections=64, pool_maxsize=pool_size)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        plain, tls = connection_classes(self._dialer)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = plain

        class TLSPool(HTTPSConnectionPool):
            ConnectionCls = tls

        self.poolmanager = PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._tls, retries=False
        )
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TLSPool}

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the pool of the request's target, as it was parsed: no second parser is asked."""
        target: Target = request.target
        return self.poolmanager.connection_from_host(target.host, target.port, target.scheme)

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the shared context verifies, and naming a file here would load it again."""

    def request_url(self, request: Any, proxies: Any) -> str:
        target: Target = request.target
        return target.request_target

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = resp.status
        response.request = req
        response.raw = RawBody(resp, method=req.method)
        return response
