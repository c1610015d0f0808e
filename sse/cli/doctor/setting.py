"""Checks what the settings mean together; that each is valid was checked when the app was made."""

from __future__ import annotations

from collections.abc import Iterator

from ...web.state import State
from .finding import Finding, ok, warn


def check_settings(state: State) -> Iterator[Finding]:
    """Yield what the settings let be done, and by whom."""
    settings = state.settings
    yield ok("settings", "each key is known, and its value valid")
    if state.access.is_open:
        stake = "everybody may call, with the upstreams' keys" if settings.open else "everybody may call"
        yield warn("access", stake, 'set SSE_PASSCODES, such as {"my-front-end": "a long random text"}')
    elif settings.passcodes:
        yield ok("access", f"by passcode, {len(settings.passcodes)} of them")
    else:
        yield ok("access", "the site tells who may call")
    if state.demonstration is not None:
        yield warn(
            "demonstration",
            "the built-in demonstration is the only upstream",
            'set SSE_UPSTREAMS, such as {"ollama": "http://127.0.0.1:11434/"}',
        )
