"""What a process sees of the way in which it was started: a Flask app for gunicorn and for Flask's command line."""

from __future__ import annotations

import gc
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from flask import Flask

app = Flask(__name__)


def kind(descriptor: Path) -> str:
    """Return the type and flags of an open file."""
    flags = Path("/proc/self/fdinfo", descriptor.name).read_text().splitlines()[1].split()[1]
    return f"{stat.filemode(descriptor.stat().st_mode)[0]} {flags}"


def streams() -> Iterator[tuple[object, ...]]:
    """Yield how the standard streams write."""
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        yield stream.encoding, stream.errors, stream.line_buffering, stream.write_through


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def seen() -> dict[str, Any]:
    """Return it, without what differs between any two processes."""
    gc.collect()
    names = Path("/proc/self/fd").iterdir()
    return {
        "args": sys.argv[1:],
        "program": sys.argv[0],
        "flags": str(sys.flags),
        "path": sys.path,
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "directory": os.getcwd(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "group": os.getpgrp(),
        "umask": umask(),
        "zone": time.tzname,
        # gevent has a dummy for each connection, and another may end just now.
        "threads": [each.name for each in threading.enumerate() if not isinstance(each, threading._DummyThread)],
        "signals": [str(signal.getsignal(number)).partition(" at ")[0] for number in sorted(signal.valid_signals())],
        "streams": list(streams()),
        "descriptors": sorted({kind(name) for name in names if int(name.name) > 2 and name.exists()}),
    }


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.get("/seen")
def show() -> dict[str, Any]:
    return seen()


@app.cli.command("seen")
def print_seen() -> None:
    print(app.json.dumps(seen()))
