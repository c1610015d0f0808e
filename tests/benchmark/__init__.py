"""What the relay costs, beside a direct connection and the textbook relay: `python -m tests.benchmark`."""
