"""What a client wants to call, parsed once (RFC 3986).

Strategy: one strict parser whose result is what is sent, so that there is no second one to have another opinion. What
two parsers could read differently (a backslash, userinfo, `0x7f.1`, an encoded slash) is refused, not understood.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from urllib.parse import unquote

from ...errors import InvalidRequest, TargetNotAllowed
from .host import parse_host

#: Characters of a URL; what nginx and gunicorn take as a request line is of that size.
MAX_URL = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}
#: Targets that are kept as they were parsed: clients name the same few again and again. What is refused is not kept.
KEPT_TARGETS = 256

# 3.1: "scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )"; what stands before it is no reason not to be refused.
_SCHEME = re.compile(r"[\s\x00-\x20]*[A-Za-z][A-Za-z0-9+.-]*:")
_HTTP_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)
# 3.2: "authority = [ userinfo "@" ] host [ ":" port ]"; userinfo is refused, for no host has an "@", and an empty port.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([1-9][0-9]{0,4}))?")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
# Some servers take "..;x" for "..": what is behind a semicolon is a parameter to them.
_DOT_SEGMENT = re.compile(r"/\.\.?(?:;[^/]*)?(?=/|\Z)")
# Controls and backslashes, and what is no UTF-8, such as a dot or a slash in two bytes.
_NO_PATH_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\\ufffd]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_CHARACTERS = frozenset("/!$&'()*+,;=:@%") | _UNRESERVED
_QUERY_CHARACTERS = _PATH_CHARACTERS | {"?"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """An absolute URL in the one form in which it is matched and sent."""

    scheme: str
    #: A-labels in lower case, or an address in its canonical form, without brackets.
    host: str
    port: int
    #: Begins with a slash; no dot segments; escapes in upper case, none where none is needed.
    path: str = "/"
    #: Without the question mark; in no repr, for some APIs take their key there.
    query: str = field(default="", repr=False)

    @cached_property
    def authority(self) -> str:
        """The value of `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @cached_property
    def request_target(self) -> str:
        """What stands in the request line (RFC 9112, section 3.2.1)."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @cached_property
    def url(self) -> str:
        """The whole, exactly as it is sent; `parse_target` gives the same target again."""
        return f"{self.scheme}://{self.authority}{self.request_target}"


@lru_cache(maxsize=KEPT_TARGETS)
def parse_target(text: str) -> Target:
    """Return the target that a text names.

    :raises InvalidRequest: if it is no absolute URL at all.
    :raises TargetNotAllowed: for everything else that is refused.
    """
    if not _SCHEME.match(text):
        raise InvalidRequest("targetUrl: must be an absolute http or https URL")
    match = _HTTP_URL.fullmatch(text)
    authority = _AUTHORITY.fullmatch(match[2]) if match is not None else None
    if match is None or authority is None or not _is_plain(text):
        raise TargetNotAllowed
    scheme = match[1].lower()
    port = int(authority[2] or DEFAULT_PORTS[scheme])
    target = Target(
        scheme=scheme,
        host=parse_host(authority[1]),
        port=port,
        path=_parse_path(match[3] or "/"),
        query=_escape(match[4] or "", _QUERY_CHARACTERS),
    )
    if port > 65535 or len(target.url) > MAX_URL:
        raise TargetNotAllowed
    return target


def _is_plain(text: str) -> bool:
    """Tell whether a text is free of whitespace, control and format characters, lone surrogates, and backslashes."""
    # WHATWG URL takes a backslash for a slash, RFC 3986 does not know it: the classic of two parsers with two opinions.
    return len(text) <= MAX_URL and text.isprintable() and not set(" \\#") & set(text)


def _parse_path(text: str) -> str:
    path = _without_dot_segments(_escape(text, _PATH_CHARACTERS))
    # RFC 3986, section 3.3: without an authority in front, a path "cannot begin with two slash characters", and in
    # the request line there is none.
    if path.startswith("//") or not _has_one_reading(path):
        raise TargetNotAllowed
    return path


def _has_one_reading(path: str) -> bool:
    """Tell whether a server finds the same segments in a path however often it decodes it or folds look-alikes."""
    text = path
    # Nobody means more than a few layers of escapes; the bound keeps the cost of a hostile path small.
    for _ in range(4):
        if text.count("/") != path.count("/") or _DOT_SEGMENT.search(text) or _NO_PATH_CHARACTER.search(text):
            return False
        decoded = unicodedata.normalize("NFKC", unquote(text))
        if decoded == text:
            return True
        text = decoded
    return False


def _escape(text: str, allowed: frozenset[str]) -> str:
    """Return a text with escapes exactly where they are needed (RFC 3986, section 6.2.2).

    :raises TargetNotAllowed: for a percent sign that begins none.
    """

    def normal(match: re.Match[str]) -> str:
        if match[1] is None:
            raise TargetNotAllowed
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else f"%{match[1].upper()}"

    escaped = "".join(c if c in allowed else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text)
    return _ESCAPE.sub(normal, escaped)


def _without_dot_segments(path: str) -> str:
    """RFC 3986, section 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


@lru_cache(maxsize=KEPT_TARGETS)
def join_target(base: Target, raw_path: str, raw_query: str) -> Target:
    """Return the target that a path and a query below a base mean; whether it is still below, the caller asks.

    :param raw_path: as it was written, without the slash before it; "" is the base itself.
    :raises TargetNotAllowed: for what `parse_target` would refuse.
    """
    if not _is_plain(raw_path) or not _is_plain(raw_query):
        raise TargetNotAllowed
    path = _parse_path(f"{base.path.rstrip('/')}/{raw_path}") if raw_path else base.path
    target = replace(base, path=path, query=_escape(raw_query, _QUERY_CHARACTERS))
    if len(target.url) > MAX_URL:
        raise TargetNotAllowed
    return target
