"""Talks to upstreams and ties them to clients. No Flask."""
