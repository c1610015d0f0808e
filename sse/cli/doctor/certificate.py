"""Describe a certificate, and why it is refused."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

#: Days before its end at which a certificate should have been renewed.
RENEWAL = 14
_DAY = 86400

#: By OpenSSL's X509_V_ERR_ numbers: what it means, and what to do.
_MEANINGS = {
    9: ("is not valid yet", "set this machine's clock, or check why the certificate begins later"),
    10: ("has expired", "renew it; if it is not so old, set this machine's clock"),
    62: ("is for other names", "call it by a name that the certificate has, or get one for this name"),
    64: ("is for other addresses", "call it by a name that the certificate has, or get one for this address"),
}


def explain(error: ssl.SSLError, *, authority_hint: str) -> tuple[str, str]:
    """Return what went wrong in a handshake, and what to do.

    :param authority_hint: what to do about an authority that is not known.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        return "TLS handshake failed", "check that this port expects TLS 1.2 or newer"
    meaning, remedy = _MEANINGS.get(error.verify_code, ("is of an untrusted authority", authority_hint))
    return f"the certificate {meaning}", remedy


def days_left(certificate: Mapping[str, Any]) -> float:
    """Return the days for which a certificate is valid, as `getpeercert()` gave it."""
    return (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY
