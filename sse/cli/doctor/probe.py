"""Print gunicorn's settings as JSON; run as a program, because gunicorn.conf.py patches the process that reads it.

It imports nothing of the package, so that modules are imported in the same order as in gunicorn.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication


def _bases(cfg: Any) -> list[str]:
    try:
        return [base.__name__ for base in cfg.worker_class.__mro__]
    except RuntimeError as error:
        # A traceback follows in its text.
        sys.exit(str(error).partition("\n")[0].rstrip(": "))


def _is_set(hook: Any) -> bool:
    # Those that do nothing are gunicorn's own.
    return not hook.__module__.startswith("gunicorn.")


def main() -> None:
    sys.argv = ["gunicorn", "app:app"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfg = WSGIApplication().cfg
    # Before the worker's class is loaded, which imports gevent.
    monkey = sys.modules.get("gevent.monkey")
    is_patched = monkey is not None and monkey.is_module_patched("socket")
    plan = {
        "worker_bases": _bases(cfg),
        "workers": cfg.workers,
        "worker_connections": cfg.worker_connections,
        "graceful_timeout": cfg.graceful_timeout,
        "keepalive": cfg.keepalive,
        "preload": cfg.preload_app,
        "reuse_port": cfg.reuse_port,
        "has_http_2": "http_protocols" in cfg.settings and "h2" in cfg.http_protocols,
        "max_requests": cfg.max_requests,
        "handles_child_exit": _is_set(cfg.child_exit),
        "has_control_socket": not cfg.control_socket_disable,
        "ends_streams": _is_set(cfg.post_worker_init),
        "is_patched": is_patched,
        "is_patched_late": any(entry.category.__name__ == "MonkeyPatchWarning" for entry in caught),
        # After the file was read, for it may have raised it.
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    print(json.dumps(plan))


if __name__ == "__main__":
    main()
