"""How the properties are run: a machine that is busy is no reason for a test to fail."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sse", deadline=None)
settings.load_profile("sse")
