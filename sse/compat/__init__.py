"""The names that other projects do not promise, one module for each project; see the contract tests in tests/compat."""
