"""The service, which also tells how many greenlets there are."""

from __future__ import annotations

import gc

import greenlet

from app import app


@app.get("/greenlets")
def greenlets() -> str:
    """Count those that are alive."""
    gc.collect()
    return str(sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in gc.get_objects()))
