"""Check what the settings mean together; that each is valid was checked when the app was made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ...web.state import State
from .finding import Finding, ok, warn


def check_settings(state: State) -> Iterator[Finding]:
    """Yield what the settings allow, and to which clients."""
    settings = state.settings
    yield ok("settings", "each key is known, and its value valid")
    if state.access.is_open:
        stake = "every client may call, with the upstreams' keys" if settings.open else "every client may call"
        yield warn("access", stake, 'set SSE_PASSCODES, such as {"my-front-end": "a long random text"}')
    elif settings.has_credentials:
        more = [key for key, value in (("SSE_CLIENTS_FILE", settings.clients_file), ("SSE_JWT", settings.jwt)) if value]
        yield ok("access", ", ".join([f"by passcode, {len(settings.passcodes)} of them", *more]))
    else:
        yield ok("access", "by the site's own callback")
    if state.demonstration is not None:
        yield warn(
            "demonstration",
            "the built-in demonstration is the only upstream",
            'set SSE_UPSTREAMS, such as {"ollama": "http://127.0.0.1:11434/"}',
        )
    yield from _file()


def _file() -> Iterator[Finding]:
    """Yield a warning if other users of this machine can read the settings file."""
    path = os.environ.get("SSE_CONFIG")
    if path and os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield warn("settings file", f"{path} can be read by other users, with all keys in it", f"chmod 600 {path}")
