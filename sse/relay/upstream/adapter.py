"""The requests adapter: connects to the checked address; `iter_content` yields bytes as they arrive.

requests and urllib3 keep their work: pools, connections and their states, TLS. What is ours sits at three places
below them: how a connection is made (`dial`), how heads are written and read (`connection`), how a body is (`body`).
"""

from __future__ import annotations

import ssl
from types import FunctionType
from typing import Any, NamedTuple

import certifi
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPHeaderDict, HTTPSConnectionPool, PoolManager

from ...protocol.target.parse import Target
from .body import RawBody
from .connection import Fields, connection_classes
from .dial import Dialer


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Return what verifies upstreams.

    :param ca_file: PEM file of further authorities, or "".
    """
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


class _PoolKey(NamedTuple):
    scheme: str
    host: str
    port: int


def _is_wrapped(function: Any) -> bool:
    own = isinstance(function, FunctionType) and function.__module__ == HTTPConnectionPool.__module__
    return not own or hasattr(function, "__wrapped__")


#: urllib3's own way to send; None if somebody had wrapped it before we came.
_URLOPEN = None if _is_wrapped(HTTPConnectionPool.urlopen) else HTTPConnectionPool.urlopen


class _Relaying:
    """What our pools do differently, whether of plain connections or of those with TLS; mixed into urllib3's."""

    # mypy cannot know what it is mixed into; hence the ignores below.
    def urlopen(self, method: str, url: str, body: bytes | None, headers: Fields, **_: Any) -> RawBody:
        """Send a request over a connection of the pool, which gets it back from the answer.

        urllib3's own parses the URL again, copies the fields, and is prepared for proxies, redirects and retries. Who
        instruments urllib3, such as OpenTelemetry, wraps it, and is to see our calls: then it is gone through.
        """
        if HTTPConnectionPool.urlopen is not _URLOPEN:
            options: Any = {"redirect": False, "retries": False, "preload_content": False, "release_conn": False}
            given: Any = HTTPHeaderDict(headers)
            return super().urlopen(method, url, body, given, assert_same_host=False, **options)  # type: ignore[misc, no-any-return]
        connection = self._get_conn()  # type: ignore[attr-defined]
        try:
            return self._make_request(connection, method, url, body, headers)
        except BaseException:
            connection.close()
            self._put_conn(None)  # type: ignore[attr-defined]
            raise

    def _make_request(
        self, conn: Any, method: str, url: str, body: bytes | None, headers: Fields | HTTPHeaderDict, **_: Any
    ) -> RawBody:
        fields = headers.items() if isinstance(headers, HTTPHeaderDict) else headers
        conn.request(method, url, body, list(fields))
        return RawBody(conn.getresponse(), conn, self._put_conn, method=method)  # type: ignore[attr-defined]


class _Response(requests.Response):
    """As much of requests' response as `iter_content` needs; the rest (a cookie jar, mappings) is 2 kB a stream."""

    _content = False
    _content_consumed = False

    def __init__(self, raw: RawBody) -> None:
        self.status_code = raw.status
        self.raw = raw


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

        class PlainPool(_Relaying, HTTPConnectionPool):  # type: ignore[misc]
            ConnectionCls = plain

        class TLSPool(_Relaying, HTTPSConnectionPool):  # type: ignore[misc]
            ConnectionCls = tls

        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._tls)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TLSPool}

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the pool of the request's target, as it was parsed: no second parser is asked."""
        target: Target = request.target
        # urllib3's own key has 27 members more, which are the same for all pools here.
        key: Any = _PoolKey(target.scheme, target.host, target.port)
        pool = self.poolmanager.pools.get(key)
        if pool is not None:
            return pool
        return self.poolmanager.connection_from_pool_key(key, {**self.poolmanager.connection_pool_kw, **key._asdict()})

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request and return the answer as soon as its head is there.

        requests' own adds what is for sessions, proxies, time-outs and retries, of which there are none; errors are
        those of whoever found them.
        """
        pool = self.get_connection_with_tls_context(request)
        raw = pool.urlopen(request.method, request.target.request_target, request.body, request.fields)
        return self.build_response(request, raw)

    def build_response(self, req: Any, resp: RawBody) -> requests.Response:
        return _Response(resp)
