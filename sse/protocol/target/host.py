"""Parse the host of a target into the one form in which it is matched and looked up (RFC 3986, section 3.2.2; UTS 46).

What one resolver could take for an address and another for a name is refused, and so is what only looks like ASCII.
"""

from __future__ import annotations

import re

import idna

from ...errors import TargetNotAllowed
from .address import parse_literal

#: Characters of a name with its trailing dot (RFC 1035, section 2.3.4).
MAX_NAME = 254

# RFC 952 and 1123, and the underscore that container networks have in names.
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

#: Names that do not exist in public DNS (RFC 6761, 6762, 7686, 8375, 9476, ICANN's .internal), and common ones inside.
_PRIVATE_DOMAINS = frozenset(
    "alt arpa corp example home internal intranet invalid lan local localdomain localhost onion private test".split()
)


def parse_host(text: str) -> str:
    """Return A-labels in lower case, or an address in its canonical form and without brackets.

    :raises TargetNotAllowed: for everything else.
    """
    return _parse_ipv6(text[1:-1]) if text.startswith("[") else _parse_name(text)


def is_dns(host: str) -> bool:
    """Return whether a name is one of the public DNS: of two labels at least, below no domain that is private."""
    *parents, domain = host.split(".")
    return bool(parents) and domain not in _PRIVATE_DOMAINS


def _parse_ipv6(text: str) -> str:
    literal = parse_literal(text)
    # A mapped address is an IPv4 address in another spelling, and those are refused.
    if literal is None or ":" not in literal or literal.startswith("::ffff:"):
        raise TargetNotAllowed
    return literal


def _parse_name(text: str) -> str:
    if len(text) > MAX_NAME:
        raise TargetNotAllowed
    try:
        name = _to_ascii(text).removesuffix(".")
    except UnicodeError:
        raise TargetNotAllowed from None
    labels = name.split(".")
    if len(name) >= MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise TargetNotAllowed
    # WHATWG URL, "ends in a number": an IPv4 address in one of its many spellings. One is taken, as it stands.
    if _NUMBER.fullmatch(labels[-1]) and (name != text or parse_literal(name) != name):
        raise TargetNotAllowed
    return name


def _to_ascii(text: str) -> str:
    """Return a name in A-labels (RFC 5890, section 2.3.2.1), lower case.

    :raises UnicodeError: it has none.
    """
    if text.isascii():
        name = text.lower()
    elif all(map(_stays, text)):
        name = idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    else:
        raise UnicodeError("a character that is mapped to ASCII or to nothing")
    for label in name.split("."):
        if label.startswith("xn--"):
            idna.ulabel(label)
    return name


def _stays(character: str) -> bool:
    """Return whether UTS 46 leaves a character on its side of ASCII; full-width digits and other dots it does not."""
    if character.isascii():
        return True
    mapped = idna.uts46_remap(character, std3_rules=True, transitional=False)
    return mapped != "" and not any(one.isascii() for one in mapped)
