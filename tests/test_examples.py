"""The sites of examples/, started as their users start them, and looked at in Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from .support.ending import eventually
from .support.program import RedisServer, missing, program
from .support.service import ROOT, Process, Service, environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

#: Where the pages get what is not theirs, which here comes from npm.
CDN = "https://cdn.jsdelivr.net/npm/"


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `node_modules` with what the pages load."""
    directory = tmp_path_factory.mktemp("examples")
    command = [program("npm", "npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    names = ["htmx.org@4", "@hotwired/turbo@8", "@starfederation/datastar@1.0.0-beta.11"]
    done = subprocess.run([*command, *names], cwd=directory, capture_output=True, text=True, timeout=300)
    if done.returncode:
        missing(f"what npm should have installed ({done.stderr.strip()[-300:]})", "npm")
    return directory / "node_modules"


@contextmanager
def site(name: str, directory: Path, **settings: object) -> Iterator[Service]:
    """Start an example, with a health check for `Service`."""
    root = directory / name
    shutil.copytree(ROOT / "examples" / name, root)
    (root / "gunicorn.conf.py").write_text("worker_class = 'gevent'\n")
    (root / "checked.py").write_text("from app import app\napp.add_url_rule('/healthz', 'h', lambda: 'ok')\n")
    with Service(app="checked:app", root=root, env={"PYTHONPATH": str(ROOT)}, **settings) as service:
        yield service


@contextmanager
def opened(chromium: Browser, url: str, packages: Path | None = None) -> Iterator[Page]:
    """Open a page that logs no error."""
    page = chromium.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))

    def serve(route: Route) -> None:
        assert packages is not None
        scope, _, rest = route.request.url.removeprefix(CDN).rpartition("@")
        route.fulfill(path=packages / scope / rest.partition("/")[2])

    page.route(f"{CDN}**", serve)
    page.goto(url)
    yield page
    page.close()
    assert not faults


def wait_items(page: Page, *texts: str) -> None:
    page.wait_for_function(
        "texts => String([...document.querySelectorAll('li')].map(item => item.textContent)) === texts",
        arg=",".join(texts),
    )


def test_chat(chromium: Browser, tmp_path: Path) -> None:
    """A response comes whole, also over a reload; one that is stopped is stopped at the upstream."""
    with (
        site("chat", tmp_path, SSE_METRICS=True) as service,
        opened(chromium, service.url) as page,
    ):
        page.fill("input", "Hello")
        page.click("text=Send")
        page.wait_for_function("document.querySelector('#state').textContent === 'complete'")
        whole = page.inner_text("#answer")
        assert len(whole) > 20
        page.click("text=Send")
        page.wait_for_function("sessionStorage.answer?.length > 100")
        page.reload()
        page.wait_for_function("document.querySelector('#state').textContent === 'complete'")
        assert page.inner_text("#answer") == whole
        page.fill("input", "Hello")
        page.click("text=Send")
        page.wait_for_function("sessionStorage.answer?.length > 100")
        page.click("text=Stop")
        page.wait_for_function("document.querySelector('#state').textContent === 'stopped'")
        metric = 'sse_recordings_ended_total{reason="stopped",upstream="demo"} 1.0'
        eventually(lambda: metric in httpx.get(f"{service.url}/metrics").text, "the upstream's answer goes on")


def test_jobs(chromium: Browser, tmp_path: Path, redis_server: RedisServer) -> None:
    with site("jobs", tmp_path, SSE_STORAGE_URI=redis_server.url) as service, opened(chromium, service.url) as page:
        page.click("text=Start a job")
        page.wait_for_function("document.querySelector('output').textContent === '0 %'")
        env = environment({"SSE_STORAGE_URI": redis_server.url}, {"PYTHONPATH": str(ROOT)})
        with Process([sys.executable, "-m", "flask", "--app", "app", "work"], env=env, cwd=tmp_path / "jobs"):
            page.wait_for_function("document.querySelector('output').textContent === 'done'")
        assert page.evaluate("document.querySelector('progress').value") == 100


@pytest.mark.parametrize(("name", "button"), [("htmx", "Add"), ("turbo", "Send"), ("datastar", "Add")])
def test_lists(chromium: Browser, tmp_path: Path, packages: Path, name: str, button: str) -> None:
    """What one page sends is on both, as text; a page that is opened later has it too."""
    with site(name, tmp_path) as service, opened(chromium, service.url, packages) as first:
        with opened(chromium, service.url, packages) as second:
            first.fill("input", "<b>one</b>")
            first.click(f"text={button}")
            wait_items(first, "<b>one</b>")
            wait_items(second, "<b>one</b>")
        with opened(chromium, service.url, packages) as third:
            wait_items(third, "<b>one</b>")
