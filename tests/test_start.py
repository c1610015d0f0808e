"""Services of the tests start as forks of a process that has their packages: a fork is like a fresh process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .support.fork import Fork, warm_program
from .support.service import ROOT, Process, Service, call, environment, run

APP = "tests.apps.seen"
#: Read before a program can read it, so that a fork would come too late.
EARLY = {"PYTHONHASHSEED": "7"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory from which the service can be started."""
    (tmp_path / "gunicorn.conf.py").write_bytes((ROOT / "gunicorn.conf.py").read_bytes())
    (tmp_path / "sse").symlink_to(ROOT / "sse")
    return tmp_path


def without_seed(seen: Mapping[str, Any]) -> dict[str, Any]:
    flags = seen["flags"].replace("hash_randomization=0", "hash_randomization=1")
    variables = {name: value for name, value in seen["environment"].items() if name not in EARLY}
    return {**seen, "flags": flags, "environment": variables}


def served(directory: Path, **early: str) -> dict[str, Any]:
    variables = {"PYTHONPATH": str(ROOT), "TZ": "Asia/Shanghai", "FLASK_WORD": "蓝", **early}
    args = ["--access-logfile", "/dev/null", "--keep-alive", "2"]
    with Service(*args, app=f"{APP}:app", root=directory, env=variables) as service:
        assert isinstance(service._process, subprocess.Popen if early else Fork)
        with call(service, "GET", "/seen") as client:
            seen: dict[str, Any] = client.json()
    return without_seed(seen)


def test_a_fork_of_gunicorn_sees_what_a_fresh_process_does(directory: Path) -> None:
    assert served(directory) == served(directory, **EARLY)


def test_a_fork_of_flask_sees_what_a_fresh_process_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", APP, "seen"]
    env = environment({}, {"PYTHONPATH": str(ROOT), "TZ": "Asia/Shanghai"})
    # The process that forks has it.
    del env["PYTEST_VERSION"]
    fork, fresh = (run(command, env={**env, **early}, cwd=tmp_path) for early in ({}, EARLY))
    assert (fork.returncode, fork.stderr) == (fresh.returncode, fresh.stderr) == (0, "")
    assert without_seed(json.loads(fork.stdout)) == without_seed(json.loads(fresh.stdout))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_fork_is_reported(directory: Path, number: int) -> None:
    with Service(app=f"{APP}:app", root=directory, env={"PYTHONPATH": str(ROOT)}) as service:
        children = service.children()
        assert service.stop(number=number) == (0 if number == signal.SIGTERM else -number)
        if number == signal.SIGKILL:
            os.kill(children[0], number)


def test_a_fork_that_fails_shows_it(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "flask", "--app", "nothing", "seen"], env=environment({}, {}), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "nothing" in done.stderr


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        pytest.param(["gunicorn", "app:app"], EARLY, id="a variable of Python"),
        pytest.param(["gunicorn", "app:app"], {"LD_PRELOAD": "/lib/x.so"}, id="a preloaded library"),
        pytest.param(["gunicorn", "app:app"], {"GUNICORN_CMD_ARGS": "-k gthread"}, id="options in the environment"),
        pytest.param(["gunicorn", "app:app"], {"PYTHONPATH": "{tmp_path}"}, id="a module that Python imports first"),
        pytest.param(["gunicorn", "app:app", "-c", os.devnull], {}, id="other settings"),
        pytest.param(["waitress", "app:app"], {}, id="another program"),
    ],
)
def test_what_a_fork_cannot_be_is_started_afresh(command: list[str], variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").touch()
    env = environment({}, {name: value.format(tmp_path=tmp_path) for name, value in variables.items()})
    assert warm_program([sys.executable, "-m", *command], env, ROOT) is None
    assert warm_program([sys.executable, "-m", "gunicorn", "app:app"], environment({}, {}), ROOT)


def test_nothing_of_the_project_is_imported_before_the_fork() -> None:
    code = (
        "import sys; sys.argv[1:] = ['gunicorn']; from tests.support.warm import preload; preload('gunicorn');"
        "print([name for name in sys.modules if name.partition('.')[0] in"
        " ('sse', 'app', 'gunicorn', 'prometheus_client')])"
    )
    with Process([sys.executable, "-c", code]) as process:
        assert process.wait_exit() == 0 and process.log() == "[]\n", process.log()
