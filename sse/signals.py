"""Signals (blinker, which comes with Flask) that a site can connect to; the sender is the app."""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A relayed or own stream has begun: `upstream`, `client` (None for one without a name), `request_id`, and `cancel`, a
#: function that ends it as if its client had left.
stream_opened = _signals.signal("stream-opened")
#: One has ended: `upstream`, `client`, `request_id`, and `end`, a `StreamEnd`. It may be sent from the event loop, so a
#: receiver must not wait.
stream_ended = _signals.signal("stream-ended")
#: An event was published in this process: `channel`, `event` (a `ServerSentEvent`), `id`.
event_published = _signals.signal("event-published")
