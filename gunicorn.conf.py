"""gunicorn's settings for the service; gunicorn reads this file by itself.

They are those of `sse.gunicorn.settings`, executed here instead of imported: what the master imports stays in it over a
SIGHUP, but these settings must be read again.
"""

from pathlib import Path

_path = Path(__file__).parent / "sse/gunicorn/settings.py"
exec(compile(_path.read_bytes(), str(_path), "exec"))
