"""What prometheus-client does not promise: how it decides where values are kept, and its files of several processes.

gunicorn.conf.py loads this file into the master by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.values import MutexValue, ValueClass

Metric = TypeVar("Metric", bound=MetricWrapperBase)

#: Whether values are kept in files that all processes read. The library has decided it when it was imported, by
#: PROMETHEUS_MULTIPROC_DIR in the environment.
IS_SHARED = ValueClass is not MutexValue

#: The kinds of metrics whose values of ended processes still count, all of which are sums.
_SUMMED = ("counter", "histogram", "summary")
_ENDED = "ended"


def labelled(metric: Metric, *labels: str) -> Metric:
    """Return the part of a metric that has these labels."""
    return metric.labels(*labels)


def fold_ended(directory: str, pid: int) -> None:
    """Add what an ended process has counted to one file for all ended ones, and delete its own.

    :param directory: PROMETHEUS_MULTIPROC_DIR.
    """
    with lock_files(directory, is_writer=True):
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]
        for kind in _SUMMED:
            _fold(Path(directory, f"{kind}_{pid}.db"), Path(directory, f"{kind}_{_ENDED}.db"))


def _fold(source: Path, total: Path) -> None:
    if not source.exists():
        return
    values = MmapedDict(str(total))  # type: ignore[no-untyped-call]
    try:
        # A worker that was killed while it wrote may leave a file that breaks off.
        with suppress(RuntimeError):
            for key, value, time, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
                values.write_value(key, values.read_value(key)[0] + value, time)  # type: ignore[no-untyped-call]
    finally:
        values.close()  # type: ignore[no-untyped-call]
    source.unlink()


@contextmanager
def lock_files(directory: str, *, is_writer: bool = False) -> Iterator[None]:
    """Keep files from being folded while they are read, so that nothing is read twice or not at all."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if is_writer else fcntl.LOCK_SH)
        yield
    finally:
        # Not by closing it, which gevent puts off until its event loop runs.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
