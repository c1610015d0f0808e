"""The benchmark's table: what each relay's results come to, and what makes them doubtful."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .client import Result

#: Seconds of lateness, and shares of a core, beyond which the harness was a part of what it measured.
LATE, BUSY = 0.02, 0.9


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One load through one door.

    :param latencies: seconds from the sending of each event to its arrival.
    :param lag: seconds by which the upstream sent late, all but the worst hundredth.
    :param upstream_cpu: seconds of CPU time of the upstream's process.
    """

    result: Result
    latencies: Sequence[float]
    lag: float
    upstream_cpu: float


#: The gateway's row.
OURS = "ours"

#: What a relay has shown, by the names of the loads.
Row = Mapping[str, Measured]


def quantile(values: Sequence[float], hundredths: int) -> float | None:
    """Return the value that so many hundredths of all do not exceed, or None of none."""
    return sorted(values)[min(len(values) * hundredths // 100, len(values) - 1)] if values else None


def _cpu_per_event(load: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        result = row[load].result
        return None if result.cpu is None else result.cpu / max(result.cpu_events, 1) * 1e6

    return value


def _latency(hundredths: int) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        seconds = quantile(row["llm"].latencies, hundredths)
        return None if seconds is None else seconds * 1e6

    return value


def _cpu_per_request(row: Row) -> float | None:
    result = row["short"].result
    return None if result.cpu is None else result.cpu / max(len(result.arrivals), 1) * 1e6


def _first_event(row: Row) -> float | None:
    return statistics.median(row["one"].result.first) * 1e6


def _memory(row: Row) -> float | None:
    result = row["idle"].result
    return None if result.memory is None else result.memory / len(result.arrivals) / 1024


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of each row.

    :param added: whether the figure of a relay is what it adds to that of the direct connection.
    """

    title: str
    value: Callable[[Row], float | None]
    digits: int = 0
    added: bool = False


COLUMNS = (
    Column(title="CPU µs/event, paced", value=_cpu_per_event("llm"), digits=1),
    Column(title="CPU µs/event, flat out", value=_cpu_per_event("firehose"), digits=2),
    Column(title="CPU µs/request", value=_cpu_per_request),
    Column(title="latency µs, p50", value=_latency(50), added=True),
    Column(title="latency µs, p99", value=_latency(99), added=True),
    Column(title="first event µs", value=_first_event, added=True),
    Column(title="KiB/open stream", value=_memory, digits=1),
)


def wrongs(row: Row) -> list[str]:
    """Return what was wrong, by load."""
    return [f"{name}: {measured.result.wrong}" for name, measured in row.items() if measured.result.wrong]


def table(rows: Mapping[str, Row]) -> str:
    """Return the rows as a table: `direct` first, relays as what they add to it, then multiples of the gateway's."""
    figures = {name: None if wrongs(row) else [column.value(row) for column in COLUMNS] for name, row in rows.items()}
    direct = figures["direct"]
    lines = [["relay", *(column.title for column in COLUMNS)]]
    added: dict[str, list[float | None]] = {}
    for name, values in figures.items():
        if values is None:
            lines.append([name, *["WRONG"] * len(COLUMNS)])
            continue
        if name != "direct":
            values = [
                _minus(value, base) if column.added else value
                for column, value, base in zip(COLUMNS, values, direct or [None] * len(COLUMNS), strict=True)
            ]
            added[name] = values
        lines.append([name, *(_cell(column, value, name) for column, value in zip(COLUMNS, values, strict=True))])
    for name in added if OURS in added else ():
        if name != OURS:
            # What is added is a small difference of large figures: from run to run its ratio may be anything.
            pairs = zip(COLUMNS, added[name], added[OURS], strict=True)
            ratios = ["-" if column.added else _ratio(a, b) for column, a, b in pairs]
            lines.append([f"{name} : {OURS}", *ratios])
    return _align(lines)


def shares(rows: Mapping[str, Row]) -> dict[str, list[float | None]]:
    """Return for each relay that was right its figures as multiples of the gateway's, without what is added."""
    right = {name: row for name, row in rows.items() if name != "direct" and not wrongs(row)}
    if OURS not in right:
        return {}
    columns = [column for column in COLUMNS if not column.added]
    base = [column.value(right[OURS]) for column in columns]
    return {
        name: [value / own if value and own else None for value, own in zip(values, base, strict=True)]
        for name, row in right.items()
        for values in [[column.value(row) for column in columns]]
    }


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _cell(column: Column, value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:{'+' if column.added and name != 'direct' else ''}.{column.digits}f}"


def _ratio(one: float | None, other: float | None) -> str:
    return f"{one / other:.1f}" if one and other and one > 0 and other > 0 else "-"


def _align(lines: list[list[str]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rows = [[line[0].ljust(widths[0]), *row[1:]] for line, row in zip(lines, rows, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def doubts(name: str, row: Row) -> list[str]:
    """Return where the harness was too slow for the relay, so that figures say more of it than of the relay."""
    found = []
    if row["llm"].lag > LATE:
        found.append(f"{name}: the upstream sent {row['llm'].lag * 1000:.0f} ms late")
    for load, measured in row.items():
        result = measured.result
        relay = (result.cpu or 0.0) / result.elapsed
        for who, cpu in (("client", result.own_cpu), ("upstream", measured.upstream_cpu)):
            # The direct connection has nothing else to wait for.
            if name != "direct" and relay < BUSY and cpu / result.elapsed > BUSY:
                found.append(f"{name}, {load}: the {who} was at its limit, not the relay")
    return found
