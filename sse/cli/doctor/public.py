"""Checks the way that clients take: through all proxies to an event stream."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import certifi
import requests

from .certificate import RENEWAL, days_left, explain
from .finding import Finding, fail, ok, warn
from .stream import Stream, check_stream, held_back

#: Seconds for a connection, and for a response's head.
PATIENCE = 5

#: Names of proxies in `Server`; most others leave a `Via`.
_PROXIES = re.compile(
    r"nginx|openresty|caddy|cloudflare|cloudfront|envoy|apache|haproxy|traefik|awselb|varnish|litespeed|gws|Google",
    re.I,
)
_AUTHORITY_HINT = "send the whole chain; if the authority is your own, name its PEM file in REQUESTS_CA_BUNDLE"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The URL that clients call.

    :param url: without a slash at its end.
    :param shown: the same without a credential.
    """

    url: str
    shown: str
    is_tls: bool
    host: str
    port: int


def split_url(text: str) -> Base:
    """Return the parts of a URL.

    :raises ValueError: if it is not one of HTTP, or has a query.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http or https URL without a query")
    path = parts.path.rstrip("/")
    return Base(
        url=f"{parts.scheme}://{parts.netloc}{path}",
        shown=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}",
        is_tls=parts.scheme == "https",
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
    )


def check_public(base: Base, *, trusted_proxies: int) -> Iterator[Finding]:
    """Yield what clients would find.

    :param trusted_proxies: how many are configured in front of the service.
    """
    yield from _tls(base)
    with requests.Session() as session:
        # No netrc and no proxy of this machine's: what is between is what is looked at.
        session.trust_env = False
        session.verify = _authorities()
        try:
            yield from _responses(session, base, trusted_proxies)
        except requests.RequestException as error:
            # Its text holds the URL.
            text = (
                f"{base.shown}: no response in time"
                if isinstance(error, requests.Timeout)
                else f"{base.shown}: no response"
            )
            yield fail("public URL", text, "check that the service and each proxy are running, and which port is open")


def _responses(session: requests.Session, base: Base, trusted_proxies: int) -> Iterator[Finding]:
    try:
        stream = _open(session, base)
    except requests.ReadTimeout:
        # If what is no stream comes, it is not the service that hangs.
        yield from _endpoints(session, base)
        yield held_back(f"{base.shown}/sse", f"no head came within {PATIENCE} s")
        return
    yield from check_stream(stream)
    if stream.response.ok:
        yield from _proxy(stream.response, trusted_proxies)
    if not stream.is_own:
        yield from _endpoints(session, base)


def _authorities() -> str:
    return os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where()


def _open(session: requests.Session, base: Base) -> Stream:
    """Return the demonstration, or what is at the URL itself where there is none."""

    def get(url: str, coding: str) -> requests.Response:
        fields = {"Accept": "text/event-stream", "Accept-Encoding": coding}
        return session.get(url, headers=fields, stream=True, timeout=PATIENCE, allow_redirects=False)

    stream = Stream(lambda coding: get(f"{base.url}/sse", coding), is_own=False, shown=f"{base.shown}/sse")
    if stream.response.status_code != 404:
        return stream
    stream.response.close()
    return Stream(lambda coding: get(base.url, coding), is_own=True, shown=base.shown)


def _tls(base: Base) -> Iterator[Finding]:
    if not base.is_tls:
        if not _is_here(base.host):
            yield warn(
                "public TLS", "none: passcodes and responses can be read on their way", "TLS is the proxy's work"
            )
        return
    try:
        context = ssl.create_default_context(cafile=_authorities())
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((base.host, base.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=base.host) as connection,
        ):
            certificate, protocol = connection.getpeercert() or {}, connection.selected_alpn_protocol()
    except ssl.SSLError as error:
        text, remedy = explain(error, authority_hint=_AUTHORITY_HINT)
        yield fail("public TLS", text, remedy)
        return
    except (OSError, UnicodeError):
        # The next check reports it too.
        return
    days = days_left(certificate)
    text = f"the certificate ends in {days:.0f} days"
    yield warn("public TLS", text, "check that it is renewed") if days < RENEWAL else ok("public TLS", text)
    if protocol != "h2":
        yield warn(
            "public HTTP",
            "no HTTP/2: a browser has six connections to a host, and each EventSource of each tab takes one",
            "nginx: listen 443 ssl http2",
        )


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy(response: requests.Response, trusted_proxies: int) -> Iterator[Finding]:
    """Yield whether the proxy that can be seen is known to us."""
    fields = response.headers
    seen = fields.get("Via") or (_PROXIES.search(fields.get("Server", "")) and fields["Server"])
    if seen and not trusted_proxies:
        yield warn(
            "proxies",
            "there is one in front, so all callers share its address, its throttle and its lock-out",
            "SSE_TRUSTED_PROXIES = 1, or as many as are in front; each has to set X-Forwarded-For",
        )


def _endpoints(session: requests.Session, base: Base) -> Iterator[Finding]:
    status = session.get(f"{base.url}/healthz", timeout=PATIENCE, allow_redirects=False).status_code
    if status == 200:
        yield ok("health", f"{base.shown}/healthz is 200")
    else:
        yield fail("health", f"{base.shown}/healthz is {status}", "let it through: a load balancer requests it")
    with session.get(f"{base.url}/metrics", timeout=PATIENCE, allow_redirects=False, stream=True) as response:
        if response.status_code == 200:
            yield warn(
                "metrics",
                f"{base.shown}/metrics can be read from where this runs",
                "let this machine alone in; nginx: location = /metrics { allow 127.0.0.1; deny all; ... }",
            )
