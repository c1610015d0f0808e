"""JSON Web Tokens as credentials (RFC 7519), short-lived ones that a site's backend gives to a browser; extra `jwt`."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jwt

from ...settings import CLIENT_NAME
from .clients import Client

#: Bytes of the longest token that is looked at.
MAX_TOKEN = 8 * 1024
#: Seconds after which a set of keys is fetched again, and the fewest between two fetches for a key that is not known.
KEYS_AGE, UNKNOWN_KEY_INTERVAL = 600.0, 30.0
#: Seconds for which a token that was verified is believed again without being verified.
VERIFIED_AGE = 60.0
#: Verified tokens that are kept.
MAX_VERIFIED = 4096
#: Seconds by which clocks may differ (RFC 7519, section 4.1.4: "some small leeway").
LEEWAY = 30.0

log = logging.getLogger("sse")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a token has to say; the setting SSE_JWT."""

    issuer: str
    audience: str
    #: Signatures that are taken; never what the token itself names (RFC 8725, section 3.1).
    algorithms: Sequence[str] = ("RS256",)
    #: The claim that is the client's name.
    client: str = "sub"


class KeySet:
    """Public keys by their id, fetched when they are needed (RFC 7517); the last set that could be read is kept.

    :param fetch: returns a JWK set as bytes; raises OSError or ValueError if there is none.
    """

    def __init__(self, fetch: Callable[[], bytes]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = -KEYS_AGE

    def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key of that id, None if there is none; a set of one key without an id serves all."""
        age = time.monotonic() - self._fetched
        if age >= KEYS_AGE or (key_id not in self._keys and age >= UNKNOWN_KEY_INTERVAL):
            self.refresh()
        return self._keys.get(key_id) or (self._keys.get(None) if len(self._keys) == 1 else None)

    def refresh(self) -> bool:
        """Fetch the keys, unless they have just been; return whether there are any."""
        # One caller fetches; the others go on with what is there.
        if not self._lock.acquire(blocking=not self._keys):
            return True
        try:
            if time.monotonic() - self._fetched < UNKNOWN_KEY_INTERVAL:
                return bool(self._keys)
            self._fetched = time.monotonic()
            keys = jwt.PyJWKSet.from_json(self._fetch().decode()).keys
            self._keys = {key.key_id: key for key in keys if key.public_key_use in (None, "sig")}
        except (OSError, ValueError, jwt.PyJWTError) as error:
            log.error("SSE_JWT: the keys cannot be read (%s); the keys before stay", type(error).__name__)
        finally:
            self._lock.release()
        return bool(self._keys)


class Verifier:
    """Verifies tokens.

    :param keys: public keys of the issuer.
    """

    def __init__(self, rules: Rules, keys: KeySet) -> None:
        self._rules = rules
        self._keys = keys
        # By digest, for a token itself is a secret. The value is when (time.monotonic()) it must be verified again.
        self._verified: dict[bytes, tuple[float, Client]] = {}

    def verify(self, text: str) -> Client | None:
        """Return the client that a token names, None if it is none that the rules take."""
        if text.count(".") != 2 or len(text) > MAX_TOKEN:
            return None
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        until, known = self._verified.get(digest, (0.0, None))
        if known is not None and time.monotonic() < until and not known.has_expired():
            return known
        client = self._decode(text)
        if client is not None:
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[digest] = time.monotonic() + VERIFIED_AGE, client
        return client

    def _decode(self, text: str) -> Client | None:
        try:
            head = jwt.get_unverified_header(text)
            # RFC 7515, section 4.1.11: "If any of the listed extension Header Parameters are not understood and
            # supported by the recipient, then the JWS is invalid"; none is understood here.
            if "crit" in head or head.get("alg") not in self._rules.algorithms:
                return None
            key = self._keys.find(head.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                text,
                key.key,
                algorithms=list(self._rules.algorithms),
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", self._rules.client]},
            )
            expires = float(claims["exp"])
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError):
            # TypeError: a key of another kind than the algorithm's. OverflowError, RecursionError: numbers and nested
            # JSON that are no token's, and that some versions of PyJWT do not expect.
            return None
        name = claims[self._rules.client]
        if not isinstance(name, str) or not CLIENT_NAME.fullmatch(name):
            return None
        return Client(name=name, expires=expires + LEEWAY)
