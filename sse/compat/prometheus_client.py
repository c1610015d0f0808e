"""What prometheus-client does not promise: how it names and continues its files of several processes.

gunicorn.conf.py loads this file into the master by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

NAMES = {"counter_PID.db": "the file in which a process counts; one that is there is continued"}

#: The kinds of metrics whose values of ended processes still count, all of which are sums.
_SUMMED = ("counter", "histogram", "summary")


def keep_counts(directory: str, pid: int) -> None:
    """Keep what an ended process has counted for a process that begins, and forget what was open in it.

    :param directory: PROMETHEUS_MULTIPROC_DIR.
    """
    with lock_files(directory, is_writer=True):
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped
        for kind in _SUMMED:
            if (path := Path(directory, f"{kind}_{pid}.db")).exists():
                path.rename(path.with_name(f"{kind}_ended{pid}.db"))


def adopt_counts(directory: str) -> None:
    """Continue in this process what an ended one has counted, so that there are no more files than processes."""
    with lock_files(directory, is_writer=True):
        for kind in _SUMMED:
            if found := next(Path(directory).glob(f"{kind}_ended*.db"), None):
                found.rename(found.with_name(f"{kind}_{os.getpid()}.db"))


@contextmanager
def lock_files(directory: str, *, is_writer: bool = False) -> Iterator[None]:
    """Keep files from being renamed while they are read, so that nothing is read twice or not at all."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if is_writer else fcntl.LOCK_SH)
        yield
    finally:
        # Not by closing it, which gevent puts off until its event loop runs.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
