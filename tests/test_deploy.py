"""The files of deploy/ for systemd and Docker: what can be tried without either is tried, the rest is compared."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from sse.settings import PREFIX, Settings

from .support.program import program
from .support.proxy import DEPLOY, edit
from .support.service import ROOT, Process, RawClient
from .support.upstream import EVENT_STREAM, Connection, Upstream, chunk, head

SERVICE = "flask-sse-relay.service"

#: Where the unit expects the code, and what runs it.
HOME, GUNICORN = "/opt/flask-sse-relay", "/opt/flask-sse-relay/venv/bin/gunicorn"

#: What the tests run in its place.
OURS = [sys.executable, "-m", "gunicorn"]

#: What stands between two of gunicorn's time-outs, at least: seconds for a kill, and for the rest to end.
MARGIN = 5

#: As a service manager does: the socket is file descriptor 3 of the process that is named (sd_listen_fds(3)).
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Unit(configparser.RawConfigParser):
    """A unit; a key that stands there several times is a list of lines."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, dict_type=dict, interpolation=None, delimiters=["="])
        self.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser documents it
        self.read_string((DEPLOY / name).read_text())


def environment(**extra: str) -> dict[str, str]:
    """Return our environment without what would configure the service, and `extra`."""
    foreign = re.compile(r"FLASK_|SSE_|HOST$|PORT$|WEB_CONCURRENCY$|LISTEN_|NOTIFY_|PYTHON")
    return {**{name: value for name, value in os.environ.items() if not foreign.match(name)}, **extra}


# systemd


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A listening socket of the test's alone."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener


@pytest.fixture
def started(port: socket.socket, tmp_path: Path) -> Iterator[Callable[[], tuple[Process, str]]]:
    """Start the unit's command with the socket, and return it with what it has notified, as soon as it has.

    Its settings are in a file that SSE_CONFIG names, as the unit's credential is.
    """
    command = shlex.split(Unit(SERVICE)["Service"]["ExecStart"])
    assert command[0] == GUNICORN
    running: list[Process] = []
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(path)
        notified.settimeout(20)

        def start() -> tuple[Process, str]:
            hand_over = [sys.executable, "-c", HAND_OVER, str(port.fileno()), *OURS, *command[1:]]
            env = environment(NOTIFY_SOCKET=path, SSE_CONFIG=str(tmp_path / "settings.toml"), PORT="1")
            running.append(Process(hand_over, env=env, pass_fds=[port.fileno()]))
            return running[-1], notified.recv(1000).decode()

        yield start
    for process in running:
        process.stop(1)


def ask(port: socket.socket, target: str) -> RawClient:
    """Return the client that has sent a request; the caller closes."""
    client = RawClient(*port.getsockname(), timeout=20)
    client.request("GET", target)
    return client


def held(connection: Connection) -> None:
    """Send an event with each request, and end the stream when the peer leaves."""
    connection.read_request()
    connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: x\n\n"))
    connection.wait_closed()


def test_the_unit_takes_the_socket_and_reports_ready(
    port: socket.socket, started: Callable[[], tuple[Process, str]], tmp_path: Path
) -> None:
    with Upstream(held) as upstream:
        (tmp_path / "settings.toml").write_text(f'SSE_UPSTREAMS = {{ test = "{upstream.url}/" }}\n')
        process, notified = started()
        assert "READY=1" in notified.split("\n")
        process.wait_log(rf"Listening at: http://127\.0\.0\.1:{port.getsockname()[1]} ")
        with ask(port, "/upstream/test/") as client:
            assert client.read_until(b"data: x\n\n")


def test_a_connection_that_comes_during_a_restart_waits(
    port: socket.socket, started: Callable[[], tuple[Process, str]], tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text("")
    first, _ = started()
    with ask(port, "/healthz") as client:
        assert client.read_head().status == 200
    first.terminate()
    assert first.wait_exit(20) == 0
    with ask(port, "/healthz") as waiting:
        started()
        assert waiting.read_head().status == 200


def test_a_reload_lets_a_stream_go_on_and_serves_new_ones(
    port: socket.socket, started: Callable[[], tuple[Process, str]], tmp_path: Path
) -> None:
    command = shlex.split(Unit(SERVICE)["Service"]["ExecReload"])
    assert Path(command[0]).name == "kill" and command[-1] == "$MAINPID"
    with Upstream(held) as upstream:
        (tmp_path / "settings.toml").write_text(f'SSE_UPSTREAMS = {{ test = "{upstream.url}/" }}\n')
        process, _ = started()
        with ask(port, "/upstream/test/") as before:
            before.read_until(b"data: x\n\n")
            old = process.children()
            subprocess.run([*command[:-1], str(process.pid)], check=True)
            # The old worker does not accept any more when it has seen the signal, so sooner or later it is another.
            process.wait_log(rf"Booting worker with pid: (?!{'|'.join(map(str, old))}\b)\d+", 20)
            with ask(port, "/upstream/test/") as after:
                after.read_until(b"data: x\n\n")
                assert before.ending is None
                assert len(upstream.connections) == 2


@pytest.mark.parametrize(("settings", "status"), [("SSE_MAX_STREAMS = 9\n", 0), ("SSE_MAX_STREAMS = -9\n", 1)])
def test_a_reload_begins_with_a_check(settings: str, status: int, tmp_path: Path) -> None:
    """systemctl then says that it failed, and the service goes on."""
    check, _ = re.findall(r"^ExecReload=(.*)$", (DEPLOY / SERVICE).read_text(), re.MULTILINE)
    (tmp_path / "settings.toml").write_text(settings)
    command = [*OURS, *shlex.split(check)[1:]]
    assert shlex.split(check)[0] == GUNICORN
    env = environment(SSE_CONFIG=str(tmp_path / "settings.toml"))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert status == 0 or "SSE_MAX_STREAMS: must be a whole number" in done.stderr


def test_the_units_have_only_keys_of_systemd(tmp_path: Path) -> None:
    """It exits with 0 also where it ignores a line, so what it says is looked at."""
    path = program("systemd-analyze", "systemd")
    text = (DEPLOY / SERVICE).read_text()
    executable = edit(
        text,
        (re.escape(f"ExecStart={GUNICORN}"), f"ExecStart={sys.executable}"),
        (re.escape(f"ExecReload={GUNICORN}"), f"ExecReload={sys.executable}"),
    )
    (tmp_path / SERVICE).write_text(executable)
    socket_unit = tmp_path / SERVICE.replace(".service", ".socket")
    socket_unit.write_text((DEPLOY / socket_unit.name).read_text())
    command = [path, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / SERVICE), str(socket_unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # Of the units of the machine it is run on it may say what it likes.
    shown = [line for line in (done.stdout + done.stderr).splitlines() if "flask-sse-relay" in line]
    assert (done.returncode, shown) == (0, [])


def test_systemd_finds_the_service_well_locked(tmp_path: Path) -> None:
    """Its own measure, from 0 (locked up) to 10; 1.5 when this was written, and 9.6 for a unit that says nothing."""
    path = program("systemd-analyze", "systemd")
    command = [path, "security", "--offline=yes", "--threshold=20", "--no-pager", str(DEPLOY / SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_units_numbers_are_those_of_gunicorn(gunicorn_settings: dict[str, Any]) -> None:
    service, port = Unit(SERVICE)["Service"], Unit(SERVICE.replace(".service", ".socket"))["Socket"]
    assert int(service["TimeoutStopSec"]) >= gunicorn_settings["graceful_timeout"] + MARGIN
    assert int(service["LimitNOFILE"]) == file_limit(gunicorn_settings)
    assert port["ListenStream"] == gunicorn_settings["bind"]
    assert int(port["Backlog"]) == gunicorn_settings["backlog"]


def file_limit(gunicorn_settings: dict[str, Any]) -> int:
    """Return the file descriptors of a full worker: two for each stream, and some."""
    return 2 * int(gunicorn_settings["worker_connections"]) + 1000


# Docker

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Return the Dockerfile's instructions."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def instruction(name: str) -> str:
    """Return what follows the one instruction of that name."""
    (found,) = [rest for known, rest in instructions() if known == name]
    return found


def exec_form(text: str) -> list[str]:
    """Return the command; the other form has a shell around it, which keeps the signals to itself."""
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def image_environment() -> dict[str, str]:
    return dict(assignment.split("=", 1) for assignment in shlex.split(instruction("ENV")))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory that holds what the Dockerfile copies, and nothing else, through the same list of exceptions."""
    root = tmp_path / "image"
    root.mkdir()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for sources in (rest.split()[:-1] for name, rest in instructions() if name == "COPY"):
        for source in sources:
            assert f"!{source}" in ignored, f"{source} is not sent to the builder"
            subprocess.run(["cp", "-r", str(ROOT / source), str(root)], check=True)
    for cache in root.rglob("__pycache__"):
        subprocess.run(["rm", "-r", str(cache)], check=True)
    return root


#: What reports each file that is opened to be written, from the first moment on.
AUDIT = """
import os, sys
def audit(event, args):
    path = None
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = args[0]
    elif event in ("os.mkdir", "os.rename"):
        path = args[0]
    elif event == "socket.bind":
        path = args[1]
    # A number is a file that is open already, and a tuple an address of the network.
    if isinstance(path, (str, bytes)):
        os.write(2, f"written: {os.path.abspath(os.fsdecode(path))}\\n".encode())
sys.addaudithook(audit)
"""


def test_the_image_runs_and_writes_to_tmp_alone(image: Path, tmp_path: Path) -> None:
    """The same command with the same variables and the same files, but for the port and the way to gunicorn."""
    scratch, hook = tmp_path / "tmp", tmp_path / "hook"
    scratch.mkdir()
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(AUDIT)
    env = environment(**{**image_environment(), "PORT": "0", "HOST": "127.0.0.1"})
    env |= {"PYTHONPATH": str(hook), "TMPDIR": str(scratch), "FLASK_SSE_METRICS": "true"}
    program_name, *arguments = exec_form(instruction("CMD"))
    assert program_name == "gunicorn"
    process = Process([*OURS, *arguments], env=env, cwd=image)
    try:
        number = int(process.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)", 20)[1])
        check = exec_form(instruction("HEALTHCHECK"))
        assert check[0] == "python"
        script = check[2].replace(image_environment()["PORT"], str(number))
        assert subprocess.run([sys.executable, "-c", script], timeout=20).returncode == 0, process.log()
        with closing(RawClient("127.0.0.1", number)) as client:
            client.request("GET", "/metrics")
            assert client.read_head().status == 200
        process.terminate()
        assert process.wait_exit(20) == 0
        assert subprocess.run([sys.executable, "-c", script], timeout=20, capture_output=True).returncode != 0
    finally:
        process.stop(1)
    written = re.findall(r"^written: (.*)$", process.log(), re.MULTILINE)
    assert any(path.startswith(str(scratch)) for path in written), "the audit sees nothing"
    assert [path for path in written if not path.startswith((str(scratch), "/dev/"))] == []


def test_the_healthcheck_requests_the_port_that_is_set() -> None:
    assert f", {image_environment()['PORT']}," in exec_form(instruction("HEALTHCHECK"))[2]
    assert instruction("EXPOSE") == image_environment()["PORT"]


def test_the_image_installs_what_is_named_and_runs_as_nobody() -> None:
    (install, _) = [rest for name, rest in instructions() if name == "RUN"]
    assert "--no-cache-dir" in install and "-r requirements.txt" in install
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", instruction("USER"))
    assert instruction("STOPSIGNAL") == "SIGTERM"
    version = re.fullmatch(r"python:3\.(\d+)-slim", instruction("FROM"))
    assert version and int(version[1]) >= 11


def test_the_variables_are_known() -> None:
    """A setting that is misspelt would stop the service with its first start."""
    known = {f"FLASK_{PREFIX}{setting.name.upper()}" for setting in fields(Settings)}
    assigned = re.findall(r"^Environment=(\w+)=", (DEPLOY / SERVICE).read_text(), re.MULTILINE)
    for names in (set(image_environment()), set(compose()["services"]["relay"]["environment"]), set(assigned)):
        assert names <= known | {"SSE_CONFIG", "TMPDIR", "HOST", "PORT", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}


def test_the_composition_is_locked_and_agrees_with_itself(gunicorn_settings: dict[str, Any]) -> None:
    whole = compose()
    services = whole["services"]
    for name, one in services.items():
        assert one["read_only"] is True and one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
    relay, redis, caddy = services["relay"], services["redis"], services["caddy"]
    # Only the relay reaches Redis, and the relay from outside only through Caddy.
    assert [name for name, one in services.items() if "ports" in one] == ["caddy"]
    assert whole["networks"]["store"] == {"internal": True}
    assert (relay["networks"], redis["networks"], caddy["networks"]) == (["front", "store"], ["store"], ["front"])
    assert relay["environment"]["FLASK_SSE_STORAGE_URI"].startswith("redis://redis:")
    assert relay["environment"]["FLASK_SSE_TRUSTED_PROXIES"] == "1"
    assert caddy["environment"]["RELAY"] == f"relay:{image_environment()['PORT']}"
    for variable in ("SITE", "RELAY"):
        assert variable in caddy["environment"] and f"{{${variable}:" in (DEPLOY / "Caddyfile").read_text()
    assert relay["environment"]["SSE_CONFIG"] == f"/run/secrets/{relay['secrets'][0]}"
    assert set(relay["secrets"]) == set(whole["secrets"])
    grace = int(relay["stop_grace_period"].removesuffix("s"))
    assert grace >= gunicorn_settings["graceful_timeout"] + MARGIN
    assert int(caddy["stop_grace_period"].removesuffix("s")) > grace
    assert relay["ulimits"]["nofile"] == file_limit(gunicorn_settings)


def test_what_the_composition_names_is_there() -> None:
    relay, caddy = (compose()["services"][name] for name in ("relay", "caddy"))
    context = (DEPLOY / relay["build"]["context"]).resolve()
    assert context == ROOT and (context / relay["build"]["dockerfile"]).is_file()
    source = caddy["volumes"][0].split(":")[0]
    assert (DEPLOY / source).is_file()
