"""The standards' rules. Pure: no sockets, no clock, no Flask, no gevent."""
