"""docs/deployment.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ..support.document import block, clean_environment, playground
from ..support.ending import LAST_WORDS
from ..support.service import ROOT, Process, Service, call

SITE = """
import time
from flask import Flask
from sse import SSE, EventSourceResponse
app = Flask(__name__)
SSE(app)
app.add_url_rule("/healthz", view_func=lambda: "ok")
app.add_url_rule("/own", "own", lambda: EventSourceResponse("a" for _ in iter(lambda: time.sleep(0.1), 1)))
"""


def site(directory: Path, settings: str) -> Path:
    """Write a site, and as its gunicorn settings a block, and return the directory."""
    (directory / "app.py").write_text(SITE)
    (directory / "gunicorn.conf.py").write_text(settings)
    return directory


def test_restart(tmp_path: Path) -> None:
    """The site has the block, and nothing else of this project's own configuration."""
    root = site(tmp_path, block("restart"))
    env = {"PYTHONPATH": str(ROOT)}
    with Service("--graceful-timeout", "5", root=root, env=env) as service, call(service, "GET", "/own") as client:
        client.read_until(b"data: a\n\n")
        service.terminate()
        assert LAST_WORDS.search(client.read_body())
        assert service.wait_exit() == 0


def test_gunicorn_settings(tmp_path: Path) -> None:
    """A site that uses our settings has our worker, and its own values go before ours."""
    root = site(tmp_path, block("gunicorn_settings"))
    command = [sys.executable, "-m", "gunicorn", "--print-config", "app:app"]
    env = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=20)
    for line in (r"workers += 2", r"graceful_timeout += 60", r"control_socket_disable += True", r"timeout += 60"):
        assert re.search(rf"^{line}$", done.stdout, re.MULTILINE), done.stdout + done.stderr
    env = {"PYTHONPATH": str(ROOT)}
    with Service("--graceful-timeout", "5", root=root, env=env) as service, call(service, "GET", "/own") as client:
        client.read_until(b"data: a\n\n")
        service.terminate()
        assert LAST_WORDS.search(client.read_body())
        assert service.wait_exit() == 0


#: What stands in the way of a machine: the venv and what it would download, and systemd.
STUBS = {
    "python3": '#!/bin/sh\ntest "$*" = "-m venv venv" && mkdir -p venv/bin && cp "$0" venv/bin/gunicorn && '
    'cp "$(dirname "$0")/pip" venv/bin/pip\n',
    "pip": '#!/bin/sh\ntest -f "$3"\n',
    "systemctl": '#!/bin/sh\necho "systemctl $*"\n',
}


def test_systemd(tmp_path: Path) -> None:
    """The files come to where the unit expects them, and the service starts with the settings."""
    checkout, stubs, etc = tmp_path / "checkout", tmp_path / "stubs", tmp_path / "etc"
    for directory in (stubs, etc / "systemd/system", tmp_path / "opt"):
        directory.mkdir(parents=True)
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    shutil.copy(ROOT / "requirements.txt", checkout)
    for name, text in STUBS.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    script = re.sub(r"(?<= )/(?=opt|etc)", f"{tmp_path}/", block("systemd"))
    env = clean_environment(PATH=f"{stubs}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "-euc", script], cwd=checkout, env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "systemctl enable --now flask-sse-relay.socket flask-sse-relay.service\n"
    unit = (etc / "systemd/system/flask-sse-relay.service").read_text()
    assert (etc / "systemd/system/flask-sse-relay.socket").exists()
    for key in ("ExecStart", "LoadCredential"):
        found = re.search(rf"^{key}=[^/]*(/\S+)", unit, re.MULTILINE)
        assert found and (tmp_path / found[1][1:]).exists(), key
    settings = etc / "flask-sse-relay.toml"
    assert settings.stat().st_mode & 0o777 == 0o600
    env = clean_environment(PORT="0", SSE_CONFIG=str(settings))
    with Process([sys.executable, "-m", "gunicorn", "app:app"], env=env) as process:
        url = process.wait_log(r"Listening at: (http://\S+)")[1]
        shown = playground(url)
    assert (shown["upstreams"], shown["open"]) == (["deepseek"], False)


def test_kubernetes(gunicorn_settings: dict[str, object]) -> None:
    """The pod is killed later than gunicorn kills its workers, and the probes name paths that there are."""
    pod = yaml.safe_load(block("kubernetes"))["spec"]
    (container,) = pod["containers"]
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    graceful = gunicorn_settings["graceful_timeout"]
    assert isinstance(graceful, int) and pod["terminationGracePeriodSeconds"] > graceful + sleep
    paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
    from app import app

    assert paths <= {rule.rule for rule in app.url_map.iter_rules()}
