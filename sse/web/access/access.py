"""Check who sends a request, and how often: credentials, the client's address, and the throttle."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NoReturn

from flask import Request

from ...errors import Unauthenticated
from ..call import Call
from .clients import Client, Directory, encode
from .limit_storage import Limit
from .origin import CrossOrigin
from .throttle import Throttle
from .unknown import UnknownBodies

#: A site's callback. It returns the client's name; any value but a string that is not empty means an unknown client.
Authorize = Callable[[Request], "str | None"]

#: Returns the client that a JSON Web Token names, None if it is not valid.
Verify = Callable[[str], Client | None]

log = logging.getLogger("sse")

#: The limit of failed logins if `SSE_THROTTLE` is empty, so that a passcode cannot be guessed.
FAILED_LOGINS = "60 per 10 second"

#: Characters of a client's name that are logged: a site's `authorize` may return any.
MAX_LOGGED_NAME = 64

#: How many parsed addresses are cached.
KEPT_ADDRESSES = 1024


class Access:
    """Decides which requests are admitted.

    :param directory: clients by their passcodes.
    :param verify: returns the client that a JSON Web Token names, None if it is not valid; None if none are accepted.
    :param throttle: counts the calls.
    :param rate: how often a client may call, in the words of Flask-Limiter; "" is no limit.
    :param trusted_proxies: how many proxies in front are believed about the client's address.
    :param authorize: the site's callback that returns a client's name; called before the passcodes are checked.
    :param cross_origin: the origins whose pages may use a login of the site's.
    :param is_open: whether every client may call.
    """

    def __init__(
        self,
        *,
        directory: Directory,
        verify: Verify | None,
        throttle: Throttle,
        rate: str,
        trusted_proxies: int,
        authorize: Authorize | None,
        cross_origin: CrossOrigin,
        is_open: bool,
    ) -> None:
        self._authorize = authorize
        self._cross_origin = cross_origin
        self.is_open = is_open
        self._trusted_proxies = trusted_proxies
        self.directory = directory
        self._verify = verify
        self._has_credentials = bool(directory) or verify is not None
        self.throttle = throttle
        self._calls = throttle.limit(rate, "client") if rate else None
        #: The limits of clients that have their own, of which there are few.
        self._calls_of = cache(lambda value: throttle.limit(value, "client") if value else None)
        failures = rate or FAILED_LOGINS
        # One count for all endpoints. A request without a credential is no failed login.
        self._anonymous = throttle.limit(failures, "address", scope="sse-anonymous")
        self._failed = throttle.limit(failures, "address", scope="sse-failed-login")
        self._failed_before = throttle.limit(failures, "address", scope="sse-failed-login", counts=False)
        self.unknown_bodies = UnknownBodies()
        #: Until when (time.monotonic()) failed logins that this process has counted do.
        self._failures_until = 0.0

    def admit(self, request: Request, call: Call) -> None:
        """Set who sent a request, by its fields, and count it.

        :raises Throttled: if the client called too often, or failed too often.
        :raises Unauthenticated: if a credential is needed and there is none, or a wrong one.
        :raises CrossSite: if a foreign page used the login of this site.
        """
        if not self.recognize(request, call):
            self.admit_by_passcode(request, call, None)

    def name(self, request: Request, call: Call, name: str | None) -> None:
        """Set who sent a request that the site has admitted itself.

        :param name: the client's; None for what `authorize` returns, or else its address.
        """
        call.address = client_address(request, trusted_proxies=self._trusted_proxies)
        self._set(call, name if name is not None else self._authorized(request))

    def recognize(self, request: Request, call: Call) -> bool:
        """Do what `admit` does, except that False is returned if the fields hold no credential and the body may.

        :raises Throttled: also if so many requests of the address were refused that no further body is read.
        """
        call.address = client_address(request, trusted_proxies=self._trusted_proxies)
        name = self._authorized(request)
        if name is not None:
            self._cross_origin.check_site(request)
            self._count(request, call, name)
            return True
        if credentials := _field_credentials(request):
            self._admit_by(request, call, credentials)
        elif self.is_open:
            self._count(request, call, None)
        else:
            self.unknown_bodies.check(call.address)
            return False
        return True

    def admit_by_passcode(self, request: Request, call: Call, passcode: str | None) -> None:
        """Admit a request that `recognize` did not, by a passcode in its body.

        :raises Throttled: if the client called too often, or failed too often.
        :raises Unauthenticated: if it is no passcode.
        """
        self._admit_by(request, call, [encode(passcode)] if passcode else [])

    def confirm(self, request: Request, call: Call, passcode: str | None) -> None:
        """Check the passcode in the body of a request that was admitted by another one in its fields.

        :raises Throttled: if the client failed too often.
        :raises Unauthenticated: if it is no passcode.
        """
        if (
            passcode
            and self._has_credentials
            and _field_credentials(request)
            and self._find([encode(passcode)]) is None
        ):
            self.refuse(request, call, is_failure=True)

    def refuse(self, request: Request, call: Call, *, is_failure: bool) -> NoReturn:
        """Count and refuse a request without a valid credential.

        :param is_failure: whether it had one at all.
        :raises Throttled: if the address failed too often.
        :raises Unauthenticated: otherwise.
        """
        if is_failure:
            self._failures_until = time.monotonic() + max(item.get_expiry() for item in self._failed.items)
        self.throttle.count(request, call, self._failed if is_failure else self._anonymous)
        raise Unauthenticated

    def _admit_by(self, request: Request, call: Call, credentials: list[bytes]) -> None:
        found = self._find(credentials) if credentials else None
        if found is None and not self.is_open:
            self.refuse(request, call, is_failure=bool(credentials))
        name, call.rules = found.name if found is not None else None, found
        if credentials and self._has_credentials and not self.is_open and self._may_have_failures():
            # While locked out, correct credentials are refused too.
            self._count(request, call, name, self._failed_before)
        else:
            self._count(request, call, name)

    def _authorized(self, request: Request) -> str | None:
        name: object = self._authorize(request) if self._authorize is not None else None
        if isinstance(name, str) and name:
            return name
        if name:
            log.warning("authorize returned %s, not a str, so the client counts as unknown", type(name).__name__)
        return None

    def _set(self, call: Call, name: str | None) -> None:
        call.name = name and name[:MAX_LOGGED_NAME]
        call.client = f"name:{name}" if name is not None else f"address:{call.address}"

    def _count(self, request: Request, call: Call, name: str | None, *limits: Limit) -> None:
        self._set(call, name)
        rules = call.rules
        calls = self._calls if rules is None or rules.throttle is None else self._calls_of(rules.throttle)
        if calls is not None:
            limits = (*limits, calls)
        if limits:
            # All at once, because with a shared store each count is a round trip.
            self.throttle.count(request, call, *limits)

    def _may_have_failures(self) -> bool:
        # The check costs as much as the throttle itself, and failed logins are rare.
        return self.throttle.is_shared or time.monotonic() < self._failures_until

    def _find(self, credentials: list[bytes]) -> Client | None:
        for credential in credentials:
            found = self.directory.find(credential)
            if found is None and self._verify is not None:
                found = self._verify(credential.decode("latin-1"))
            if found is not None:
                return found
        return None


def _field_credentials(request: Request) -> list[bytes]:
    """Return the one credential in a request's fields, in each way its bytes can be meant.

    The query is not looked at: it is written to logs.
    """
    value = request.environ.get("HTTP_X_PASSCODE") or bearer(request)
    if not value:
        return []
    # As latin-1 (all that `fetch` can send in a field), and as UTF-8 (all that curl can).
    return [encode(value), value.encode("latin-1", "replace")]


def bearer(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer`, which is the gateway's credential (RFC 6750, section 2.1)."""
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def client_address(request: Request, *, trusted_proxies: int) -> str:
    """Return the address that the outermost trusted proxy saw; of an IPv6 address its /64, which one network prefix is.

    :param trusted_proxies: so many values at the right end of X-Forwarded-For were written by trusted proxies; what
        is left of them is the client's own invention.
    """
    peer = request.remote_addr or "unknown"
    seen = request.headers.get("X-Forwarded-For", "").split(",") if trusted_proxies else []
    if not trusted_proxies or len(seen) < trusted_proxies:
        return _network_prefix(peer) or peer
    return _network_prefix(seen[-trusted_proxies].strip()) or _network_prefix(peer) or peer


@lru_cache(maxsize=KEPT_ADDRESSES)
def _network_prefix(text: str) -> str | None:
    # Some proxies append the port to the address, as in a URL's authority.
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    # A dual-stack socket shows an IPv4 client as ::ffff:192.0.2.1.
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
