"""The benchmark: its table has what it promises, and no relay that loses or changes a byte gets a figure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .benchmark import __main__ as benchmark
from .benchmark import audience, channels, client, durable, growth, layers
from .benchmark.client import Door, run
from .benchmark.load import LOADS, Load, events_of
from .benchmark.table import COLUMNS, Measured, doubts, table
from .benchmark.upstream import Upstream as Source
from .support.program import program
from .support.service import ROOT, Service
from .support.upstream import Connection, Script, Upstream, chunk, head, respond

SCALE = 0.02
ONE = Load(streams=1, at_once=1, events=5)
EVENTS = events_of(0, 5)


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    """The benchmark's own upstream."""
    with Source() as upstream:
        yield upstream


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_relay_has_a_row_with_a_figure_in_each_column(tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    command = [sys.executable, "-m", "tests.benchmark", "--scale", str(SCALE), "--plot", str(plot)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, *rows = [cells(line) for line in done.stdout.splitlines() if line.startswith("|")]
    assert head == ["relay", *(column.title for column in COLUMNS)]
    program("nginx", "nginx")
    relays = ["naive", "nginx", "ours"]
    assert [row[0] for row in rows] == ["direct", *relays, "naive : ours", "nginx : ours"]
    for row in rows[1:4]:
        # So few streams need no memory of their own, and their times are noise, below nothing even.
        assert all(re.fullmatch(r"[+-]?\d+(\.\d+)?", cell) for cell in row[1:]), row
        assert all(float(cell) > 0 for cell in row[1:4]), row
    for column, cell in zip(COLUMNS, rows[4][1:], strict=True):
        assert not column.added or cell == "-", "a ratio of what is mostly noise"
    picture = plot.read_text()
    # A group of bars for each figure, with one of each relay.
    assert all(f">{name}<" in picture for name in relays), picture
    titles = [column.title for column in COLUMNS if not column.added]
    assert all(f">{title}<" in picture for title in titles)
    # The legend's and the ground's are the others; so few streams need no memory of their own.
    assert picture.count("<rect") >= 1 + len(relays) + len(relays) * (len(titles) - 1)


@pytest.mark.parametrize("name", LOADS)
def test_every_event_of_a_load_arrives_and_is_noted_at_both_ends(source: Source, name: str) -> None:
    load = LOADS[name].scaled(SCALE)
    source.report()
    result = run(Door(name="direct", port=source.port, upstream=source.port), load)
    sent, lags, _ = source.report()
    assert (result.wrong, result.events) == ("", load.streams * load.events)
    assert {stream: len(times) for stream, times in result.arrivals.items()} == dict.fromkeys(
        range(load.streams), load.events
    )
    assert len(result.first) == load.streams
    if load.rate:
        assert len(lags) == load.streams * (load.events - 1)
        assert all(
            went <= came
            for stream, times in result.arrivals.items()
            for went, came in zip(sent[stream], times, strict=True)
        )


def test_no_two_events_are_alike() -> None:
    every = [event for stream in range(20) for event in events_of(stream, 50)]
    assert len(set(every)) == 1000
    assert all(80 <= len(event) <= 220 and event.endswith(b"\n\n") for event in every)


WRONG = [
    pytest.param(respond(*EVENTS[:2], *EVENTS[3:]), "other bytes", id="an-event-is-lost"),
    pytest.param(respond(*EVENTS[:3], *EVENTS[2:]), "other bytes", id="an-event-comes-twice"),
    pytest.param(respond(EVENTS[1], EVENTS[0], *EVENTS[2:]), "other bytes", id="two-events-swap-places"),
    pytest.param(respond(*EVENTS[:4], EVENTS[4].replace(b"quick", b"quicK")), "other bytes", id="a-byte-is-changed"),
    pytest.param(respond(*events_of(1, 5)), "other bytes", id="another-stream"),
    pytest.param(respond(*EVENTS[:4]), "bytes", id="the-last-event-is-missing"),
    pytest.param(respond(*EVENTS, b": more\n\n"), "other bytes", id="something-is-added"),
    pytest.param(lambda connection: connection.read_request(), "ended after 0", id="no-answer"),
    pytest.param(respond(*EVENTS, status=503), "answered HTTP/1.1 503", id="refused"),
    pytest.param(respond(*EVENTS, framing="close"), "not chunked", id="no-end-to-be-seen"),
]


@pytest.mark.parametrize(("script", "reason"), WRONG)
def test_what_is_not_the_stream_is_wrong(upstream: Callable[..., Upstream], script: Script, reason: str) -> None:
    faulty = upstream(script)
    assert reason in run(Door(name="faulty", port=faulty.port, upstream=faulty.port), ONE).wrong


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_stream_that_does_not_end_in_time_is_wrong(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """A relay that always had something to read was never given up."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, "Transfer-Encoding: chunked") + chunk(EVENTS[0]))
        if is_silent:
            connection.wait_closed()
        # The size of a chunk, which goes on for longer than the client has patience.
        end = time.monotonic() + 3
        while time.monotonic() < end:
            connection.send(b"0" * 1000)

    monkeypatch.setattr(client, "PATIENCE", 0.5)
    endless = upstream(script)
    shown = run(Door(name="endless", port=endless.port, upstream=endless.port), ONE).wrong
    assert shown == "1 streams did not end"


def test_what_is_the_stream_is_right(upstream: Callable[..., Upstream]) -> None:
    good = upstream(respond(b"".join(EVENTS[:3]), b"".join(EVENTS[3:])))
    result = run(Door(name="good", port=good.port, upstream=good.port), ONE)
    assert (result.wrong, result.events) == ("", 5)


def test_a_wrong_relay_has_no_figure_and_fails_the_run(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = upstream(respond(*EVENTS, status=503))

    def doors(source: Source) -> Iterator[Door]:
        yield Door(name="direct", port=source.port, upstream=source.port)
        yield Door(name="faulty", port=faulty.port, upstream=source.port)

    monkeypatch.setattr(benchmark, "doors", doors)
    assert benchmark.main(["--scale", str(SCALE)]) == 1
    shown = capsys.readouterr().out
    row = next(cells(line) for line in shown.splitlines() if line.startswith("| faulty"))
    assert set(row[1:]) == {"WRONG"}
    assert "WRONG faulty, llm: stream" in shown


@pytest.mark.parametrize(("load_average", "is_named"), [(0.0, False), (99.0, True)])
def test_a_busy_machine_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], load_average: float, is_named: bool
) -> None:
    def doors(source: Source) -> Iterator[Door]:
        yield Door(name="direct", port=source.port, upstream=source.port)

    monkeypatch.setattr(benchmark, "doors", doors)
    monkeypatch.setattr("os.getloadavg", lambda: (load_average, 0.0, 0.0))
    assert benchmark.main(["--scale", str(SCALE)]) == 0
    assert ("Others kept 99.0 of" in capsys.readouterr().out) is is_named


def test_a_harness_that_is_too_slow_is_named(source: Source) -> None:
    load = LOADS["llm"].scaled(SCALE)
    result = run(Door(name="slow", port=source.port, upstream=source.port), load)
    result.own_cpu = result.elapsed
    measured = Measured(result=result, latencies=[], lag=0.5, upstream_cpu=0.0)
    shown = doubts("slow", {"llm": measured})
    assert shown == ["slow: the upstream sent 500 ms late", "slow, llm: the client was at its limit, not the relay"]


def test_without_proc_the_table_shows_a_dash(source: Source) -> None:
    door = Door(name="direct", port=source.port, upstream=source.port)
    row = {
        name: Measured(result=run(door, load.scaled(SCALE)), latencies=[0.1], lag=0.0, upstream_cpu=0.0)
        for name, load in LOADS.items()
    }
    *_, relay = [cells(line) for line in table({"direct": row, "ours": row}).splitlines()]
    unknown = [column.title for column, cell in zip(COLUMNS, relay[1:], strict=True) if cell == "-"]
    assert unknown == ["CPU µs/event, paced", "CPU µs/event, flat out", "CPU µs/request", "KiB/open stream"]


# Growth


def test_growth_is_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "STREAMS", (200, 1000))
    monkeypatch.setattr(growth, "RATES", (100,))
    monkeypatch.setattr(growth, "SECONDS", 1)
    plot = tmp_path / "growth.svg"
    assert growth.main(["--scale", str(SCALE), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    rows = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:5]] == [["4", "30"], ["20", "6"], ["4", "100"]]
    assert all(float(row[2]) > 0 for row in rows[2:5])
    program("redis-server", "redis-server")
    memory, redis = rows[7:]
    assert (memory[0], memory[2:], redis[0]) == ("memory", ["0", "1.00"], "Redis")
    assert all(float(cell) > 0 for cell in redis[1:])
    assert printed.count("linearly") == 2
    assert plot.read_text().count("<circle") == 2 * len(growth.STREAMS)


def test_growth_beyond_the_number_of_streams_is_named() -> None:
    # 6000 events a second of all; each stream adds 5 µs a second at first, then ever more, and always 8 KiB.
    costs = [(200, 20.0), (1000, 20.7), (5000, 24.0), (9000, 44.0)]
    points = [growth.Point(streams, 6000 / streams, cpu, 8.0, 0, 0) for streams, cpu in costs]
    assert list(growth.verdicts(points)) == [
        "One more stream adds 16.4 µs of CPU a second, 30.0 from 5000 on: it grows FASTER than linearly",
        "One more stream adds 8.0 KiB, 8.0 from 5000 on: it grows no faster than linearly",
    ]


def test_no_more_streams_than_descriptors_are_opened() -> None:
    assert [load.streams for load in growth.loads(1, 6000)][:4] == [200, 1000, 5000, 6000]


def test_recorded_streams_are_measured_beside_plain_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program("redis-server", "redis-server")
    # The peer is installed with npm, which takes longer than all the rest.
    monkeypatch.setattr(durable, "peer", lambda *_: None)
    assert durable.main(["--scale", str(SCALE)]) == 0
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    kinds = ["plain ({})", "recorded in {}", "resumed from {}"]
    assert [row[0] for row in rows] == [kind.format(store) for store in ("memory", "Redis") for kind in kinds]
    assert all(float(row[1]) > 0 for row in rows)
    assert float(rows[1][3]) < float(rows[4][3]), "memory costs Redis more than Redis does"


# Channels


def audience_of(port: int) -> audience.Server:
    return audience.Server(name="a channel", port=port, pid=os.getpid())


def test_what_readers_of_a_channel_cost_is_measured() -> None:
    with Service("-w", "1", app="tests.benchmark.peers.ours:app") as service:
        server = audience.Server(name="ours", port=service.port, pid=service.pid)
        taken = audience.attend(server, readers=20, events=3, empty=(0, 0))
    assert len(taken.delays) == 3
    assert taken.cpu[0] > 0
    assert all(0 < delay < audience.PATIENCE for delay in taken.delays)
    # With nothing taken off, it is the whole process.
    assert taken.memory[0] * 20 > 10 * 1024 * 1024
    assert (taken.cpu[1], taken.memory[1]) == (0, 0)


def test_a_channel_that_keeps_an_event_from_a_reader_is_wrong(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(connection: Connection) -> None:
        if connection.read_request().method == "POST":
            connection.send(head(200, "Content-Length: 0"))
        else:
            connection.send(head(200, "Transfer-Encoding: chunked") + chunk(b"data: another\n\n"))
            connection.wait_closed()

    monkeypatch.setattr(audience, "PATIENCE", 0.3)
    with pytest.raises(audience.Wrong, match="not every reader was let in"):
        audience.attend(audience_of(upstream(script).port), readers=2, events=1, empty=(0, 0))


def test_a_channel_that_refuses_a_reader_is_wrong(upstream: Callable[..., Upstream]) -> None:
    refusing = upstream(respond(status=503, framing="close"))
    with pytest.raises(audience.Wrong, match="answered b'HTTP/1.1 503"):
        audience.attend(audience_of(refusing.port), readers=1, events=1, empty=(0, 0))


def test_each_goal_for_channels_is_named() -> None:
    figures = {
        "ours, memory": [10.0, 0.0, 5.0, 11.9, 0.0],
        "ours, Redis": [10.0, 6.0, 20.0, 11.9, 0.2],
        "Flask-SSE": [14.0, 8.0, 30.0, 30.0, 9.0],
        "sse-starlette": [15.0, 0.0, 10.0, 20.0, 0.0],
        "nginx with nchan": [5.0, 0.0, 2.0, 5.0, 0.0],
    }
    assert [line.rpartition(": ")[2] for line in channels.goals(figures)] == [
        *["met", "met (2.0)", "met", "NOT met (2.5)", "met"],
        *["NOT met", "NOT met (3.2)", "NOT met", "NOT met (10.0)", "NOT met"],
    ]
    alone = {"ours, memory": figures["ours, memory"]}
    assert list(channels.goals(alone)) == ["ours, memory, at most 12 KiB for a silent reader: met"]


def test_each_layer_of_a_request_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main(["--scale", str(SCALE)]) == 0
    head, _, *rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert head == ["a request through", "CPU µs", "lowest", "highest", "of the gateway's"]
    assert [row[0] for row in rows][:4] == [
        "gunicorn, a WSGI function",
        "gunicorn and Flask, a view",
        "the textbook relay",
        layers.GATEWAY,
    ]
    for name, *figures in rows:
        middle, lowest, highest, ratio = map(float, figures)
        assert 0 < lowest <= middle <= highest and ratio > 0, name
