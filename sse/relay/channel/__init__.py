"""Channels: publish from anywhere, read everywhere."""
