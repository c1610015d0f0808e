"""Contract with gunicorn's master: what sse/gunicorn/master.py and gunicorn.conf.py expect of it."""

from __future__ import annotations

import inspect
import time
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.workertmp import WorkerTmp

from sse.gunicorn.master import NAMES

REMEDY = "gunicorn's master has changed: adapt sse/gunicorn/master.py or hold gunicorn below this version"


class Application(BaseApplication):
    def load_config(self) -> None: ...


def test_the_master_has_what_a_guarded_reload_uses() -> None:
    master: Any = Arbiter(Application())
    missing = [name for name in NAMES if not hasattr(master, name)]
    assert not missing, f"{missing}: {REMEDY}"


def test_a_reload_stops_old_workers_by_managing_them() -> None:
    text = inspect.getsource(Arbiter.reload)
    assert text.index("spawn_worker(") < text.index("self.manage_workers()"), REMEDY
    assert "self.reload()" in inspect.getsource(Arbiter.handle_hup), REMEDY


def test_a_worker_s_file_shows_that_it_serves() -> None:
    file = WorkerTmp(Config())
    assert file.last_update() > time.monotonic(), REMEDY
    file.notify()
    assert file.last_update() <= time.monotonic(), REMEDY
    file.close()
