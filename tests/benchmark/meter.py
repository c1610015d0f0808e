"""How much CPU time and memory a tree of processes has taken, where the system shows them."""

from __future__ import annotations

import sys
import time
from pathlib import Path


class Meter:
    """Reads what a process and its children, as they are now, have used.

    :param pid: the process; None is no process, whose use is unknown.
    """

    def __init__(self, pid: int | None) -> None:
        self._pids = _tree(pid) if pid is not None and sys.platform == "linux" else []

    def cpu(self) -> float | None:
        """Return seconds of CPU time, exact to the nanosecond, or None."""
        return sum(time.clock_gettime(_clock(pid)) for pid in self._pids) if self._pids else None

    def memory(self) -> int | None:
        """Return bytes of resident memory, or None."""
        return sum(_resident(pid) for pid in self._pids) if self._pids else None


def _clock(pid: int) -> int:
    # clock_getcpuclockid(3), which Python does not offer for processes: the kernel's CPUCLOCK_SCHED is 2.
    return (~pid << 3) | 2


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in _tree(int(child)))]


def _resident(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def proportional(pid: int) -> int:
    """Return bytes of memory of a tree of processes, in which what several share is counted once (PSS); 0: unknown."""
    return sum(_pss(found) for found in _tree(pid)) if sys.platform == "linux" else 0


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
