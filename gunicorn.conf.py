"""gunicorn's settings for the service; gunicorn reads this file by itself."""

# The first lines, before anything else is imported: a module that took `socket` earlier would keep the blocking one.
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  # patched first, see above

bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"

# A stream needs a greenlet, not a thread or a process.
worker_class = "gevent"

# With memory:// the counts of throttle and leases are one process's own, so there is one.
workers = 1

# Connections of a worker. It is a silent wall, health check included, so it stays above SSE_MAX_STREAMS, which
# refuses with an answer.
worker_connections = 10_000

# Connections that wait to be accepted: 5,000 at once were all served 2.6 times as soon as with 128.
backlog = 2048

# Seconds in which the event loop must show life; it is not a limit on streams.
timeout = 60

# Seconds an idle connection is kept, and seconds in which a request's head must come.
keepalive = 5

# Seconds that open streams have after SIGTERM before the master kills the worker.
graceful_timeout = 30

# It would be one for each user, in the home directory, and instances would take it from each other.
control_socket_disable = True
