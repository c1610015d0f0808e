"""The URL that a client names, parsed once (RFC 3986).

Strategy: one strict parser whose result is what is sent, so that no second one can differ. What two parsers could read
differently (a backslash before the query, userinfo, `0x7f.1`, a way up that only shows when it is decoded twice) is
refused; everything else is sent as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from urllib.parse import quote, unquote

from ...errors import InvalidRequest, TargetNotAllowed
from .host import parse_host

#: Characters of a URL; what nginx and gunicorn take as a request line is of that size.
MAX_URL = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}
#: Targets that are kept as they were parsed: clients name the same few again and again. What is refused is not kept.
KEPT_TARGETS = 256

# 3.1: "scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )"; what stands before it is no reason not to be refused.
_SCHEME = re.compile(r"[\s\x00-\x20]*[A-Za-z][A-Za-z0-9+.-]*:")
_HTTP_URL = re.compile(r"(https?)://([^/?#\\]*)([^?#\\]*)(?:\?([^#]*))?", re.IGNORECASE)
# 3.2: "authority = [ userinfo "@" ] host [ ":" port ]"; userinfo is refused, for no host has an "@", and an empty port.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([1-9][0-9]{0,4}))?")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
# Some servers take "..;x" for "..": what is behind a semicolon is a parameter to them. Some take "\\" for "/".
_DOT_SEGMENT = re.compile(r"[/\\]\.\.?(?:;[^/\\]*)?(?=[/\\]|\Z)")
# What has a meaning in a path; a character that only looks like one may get it where look-alikes are folded.
_SEPARATOR = re.compile(r"[/\\]|%[0-9A-Fa-f]{2}")
# Controls, and what is no UTF-8, such as a dot or a slash in two bytes.
_NO_PATH_CHARACTER = re.compile(r"[\x00-\x1f\x7f\ufffd]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_CHARACTERS = frozenset("/!$&'()*+,;=:@%") | _UNRESERVED
# WHATWG URL, "query percent-encode set": the characters that a browser escapes in a query; a "%" and "\\" are not among
# them.
_QUERY_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('"#<>')


@dataclass(frozen=True, kw_only=True)
class Target:
    """An absolute URL in the one form in which it is matched and sent."""

    scheme: str
    #: A-labels in lower case, or an address in its canonical form, without brackets.
    host: str
    port: int
    #: Begins with a slash; no dot segments; else as it was written.
    path: str = "/"
    #: Without the question mark; in no repr, for some APIs take their key there.
    query: str = field(default="", repr=False)

    @cached_property
    def authority(self) -> str:
        """The value of `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @cached_property
    def matched_path(self) -> str:
        """The path in the form in which it is compared: without escapes that mean nothing (RFC 3986, section 6.2.2)."""
        return _ESCAPE.sub(_normalize, self.path)

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
    """Return whether a text is free of whitespace, control and format characters, and lone surrogates."""
    return len(text) <= MAX_URL and text.isprintable() and not set(" #") & set(text)


def _parse_path(text: str) -> str:
    # WHATWG URL takes a backslash in a path for a slash, RFC 3986 does not allow it, and many clients escape it. In a
    # query it is data to all of them.
    if "\\" in text:
        raise TargetNotAllowed
    path = _without_dot_segments(_escape(text, _PATH_CHARACTERS))
    # RFC 3986, section 3.3: without an authority in front, a path "cannot begin with two slash characters", and in
    # the request line there is none.
    if path.startswith("//") or not _has_one_reading(path):
        raise TargetNotAllowed
    return path


def _has_one_reading(path: str) -> bool:
    """Return whether no server finds a way up in a path, however often it decodes it or folds look-alikes."""
    text = path
    # No client means more than a few layers of escapes; the bound keeps the cost of a hostile path small.
    for _ in range(4):
        if _DOT_SEGMENT.search(text) or _NO_PATH_CHARACTER.search(text) or "%u" in text.lower():
            return False
        decoded = unquote(text)
        folded = unicodedata.normalize("NFKC", decoded)
        if folded == text:
            return True
        if len(_SEPARATOR.findall(folded)) != len(_SEPARATOR.findall(decoded)):
            return False
        text = folded
    return False


def _escape(text: str, allowed: frozenset[str]) -> str:
    """Return a text with escapes added where they are needed; those that it has stay as they are."""
    return "".join([c if c in allowed else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text])


def _escape_bytes(text: str) -> str:
    """Return a text of WSGI's with what is not ASCII escaped."""
    return "".join([c if c < "\x80" else quote(c, encoding="latin-1" if c <= "\xff" else "utf-8") for c in text])


def _normalize(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0].upper()


def _without_dot_segments(path: str) -> str:
    """Return a path as RFC 3986, section 5.2.4, reads it; WHATWG URL adds that `%2e` is a dot there."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    dots = [re.sub("%2e", ".", segment, flags=re.IGNORECASE) for segment in segments]
    for segment, plain in zip(segments, dots, strict=True):
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
    if dots[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


@lru_cache(maxsize=KEPT_TARGETS)
def join_target(base: Target, raw_path: str, raw_query: str) -> Target:
    """Return the target that a path and a query below a base mean; the caller checks whether it is still below.

    :param raw_path: as it was written, without the slash before it, in WSGI's form, where a character is a byte; "" is
        the base itself.
    :param raw_query: in the same form.
    :raises TargetNotAllowed: for what `parse_target` would refuse.
    """
    raw_path, raw_query = _escape_bytes(raw_path), _escape_bytes(raw_query)
    if not _is_plain(raw_path) or not _is_plain(raw_query):
        raise TargetNotAllowed
    path = _parse_path(f"{base.path.rstrip('/')}/{raw_path}") if raw_path else base.path
    target = replace(base, path=path, query=raw_query)
    if len(target.url) > MAX_URL:
        raise TargetNotAllowed
    return target
