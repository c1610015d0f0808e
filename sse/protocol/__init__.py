"""What the standards say. Pure: no sockets, no clock, no Flask, no gevent."""
