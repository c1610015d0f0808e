"""A disk that is full, and nobody who reads the log: no stream and no answer depends on what is written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.crowd import Crowd, Spring
from ..support.ending import EVENT
from ..support.service import ROOT, Service, call
from ..support.upstream import Upstream, answer

FULL = """
import os
there = os.open("/dev/full", os.O_WRONLY)
"""

UNREAD = """
import os
reader, there = os.pipe()
os.close(reader)
"""

#: In the worker alone, so that the master can say where it listens.
REST = """
os.dup2(there, 1)
os.dup2(there, 2)
from service_app import app
"""


@pytest.mark.parametrize("where", [pytest.param(FULL, id="a full disk"), pytest.param(UNREAD, id="a closed pipe")])
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_log_that_cannot_be_written_harms_nobody(where: str, unbuffered: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(where + REST)
    for name, source in [("sse", "sse"), ("gunicorn.conf.py", "gunicorn.conf.py"), ("service_app.py", "app.py")]:
        (tmp_path / name).symlink_to(ROOT / source)
    settings = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with Spring(interval=0.1) as spring, Upstream(answer(EVENT)) as upstream:
        table = {"test": spring.url, "short": upstream.url}
        env = {"PYTHONUNBUFFERED": unbuffered}
        access_log = "/dev/full" if where is FULL else "-"
        with Service(
            "--access-logfile", access_log, root=tmp_path, env=env, SSE_UPSTREAMS=table, **settings
        ) as service:
            workers = service.worker_pids()
            with Crowd(service, 10) as crowd:
                for _ in range(30):
                    with call(service, "GET", "/upstream/short/") as client:
                        assert (client.read_head().status, client.read_body()) == (200, EVENT)
                        assert client.is_complete
                with call(service, "GET", "/upstream/none/") as client:
                    assert client.read_head().status == 404
                before = {reader: len(reader.data) for reader in crowd.readers}
                crowd.wait(lambda: all(len(reader.data) > before[reader] + 20 for reader in crowd.readers))
                assert crowd.streaming == 10
            spring.wait_open(0)
            assert service.worker_pids() == workers
            # Nothing of the worker's came out, so it was put to the test.
            assert "stream end=" not in service.log()
            assert service.stop() == 0
