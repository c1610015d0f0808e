"""Programs of this machine that tests need: found, or the test is skipped; Redis servers of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from .ending import eventually
from .service import PATIENCE, Process

#: Seconds that a script for Node.js may take.
NODE_PATIENCE = 20


def missing(what: str, package: str) -> NoReturn:
    """Skip a test because `what` is not on this machine; with `CI=true` that is a failure."""
    reason = f"{what} is not installed; on Debian: apt install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test."""
    return shutil.which(name) or missing(name, package)


def run_node(directory: Path, script: str, *args: str) -> Any:
    """Return what a script has printed, as the JSON value it holds."""
    command = ["node", script, *args]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=NODE_PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class RedisServer:
    """A Redis of the test's own that keeps nothing; it can be stopped, and started again on the same port.

    :param path: the program `redis-server`.
    :param directory: where it may write.
    :param args: more arguments, such as `"--cluster-enabled", "yes"`.
    """

    def __init__(self, path: str, directory: Path, *args: str) -> None:
        base = [path, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
        self._command = [*base, *args]
        self.port = 0
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def client(self) -> Any:
        """Return a client of this server alone; the caller closes it."""
        # Here, because tests that need no Redis run without the package.
        import redis

        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def start(self) -> None:
        """Return when it accepts connections."""
        # Redis takes port 0 for "do not listen", so the port is chosen here, and another one if it was taken since.
        for _ in range(5):
            port = self.port or free_port()
            process = Process([*self._command, "--port", str(port)])
            found = process.wait_log("Ready to accept connections|Address already in use|Sentinel ID is")[0]
            if "Address" not in found:
                self.port, self._process = port, process
                return
            process.stop()
        raise AssertionError("no free port for redis-server")

    def stop(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None


class RedisCluster:
    """Three nodes of a Redis Cluster, each with a third of the slots and no replica.

    :param path: the program `redis-server`.
    :param directory: where it may write.
    """

    def __init__(self, path: str, directory: Path) -> None:
        self.nodes: list[RedisServer] = []
        self._buses: list[int] = []
        for number in range(3):
            home, bus = directory / f"node-{number}", free_port()
            home.mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"]
            self.nodes.append(RedisServer(path, home, *options))
            self._buses.append(bus)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Return when every node serves all slots."""
        for node in self.nodes:
            node.start()
        clients = [node.client() for node in self.nodes]
        bounds = [0, 5461, 10923, 16384]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port, self._buses[0])
        eventually(lambda: all(map(_is_whole, clients)), "the cluster is not whole")
        for client in clients:
            client.close()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def _is_whole(client: Any) -> bool:
    state = client.execute_command("CLUSTER INFO")
    return (state["cluster_state"], state["cluster_known_nodes"]) == ("ok", "3")


class RedisSentinel:
    """A primary, its replica, and a Sentinel that makes the replica the primary when the primary is killed.

    :param path: the program `redis-server`.
    :param directory: where it may write.
    """

    name = "relay"

    def __init__(self, path: str, directory: Path) -> None:
        homes = [directory / name for name in ("primary", "replica", "sentinel")]
        for home in homes:
            home.mkdir()
        self._config = homes[2] / "sentinel.conf"
        self.primary = RedisServer(path, homes[0])
        self.replica = RedisServer(path, homes[1], "--repl-diskless-sync-delay", "0")
        self._sentinel = RedisServer(path, homes[2])
        self._sentinel._command = [path, str(self._config), "--sentinel", "--bind", "127.0.0.1"]

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/{self.name}"

    def start(self) -> None:
        """Return when the replica follows and the Sentinel knows both."""
        self.primary.start()
        with self.primary.client() as client:
            client.config_set("repl-diskless-sync-delay", "0")
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
            eventually(lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow")
        self._config.write_text(
            f"sentinel monitor {self.name} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.name} 500\n"
            f"sentinel failover-timeout {self.name} 2000\n"
        )
        self._sentinel.start()
        with self._sentinel.client() as client:
            eventually(lambda: len(client.sentinel_slaves(self.name)) == 1, "the Sentinel does not know the replica")

    def wait_replicated(self) -> None:
        """Return when the replica has everything that the primary has: a failover loses what it has not."""

        def is_equal() -> bool:
            with self.primary.client() as primary, self.replica.client() as replica:
                offset: int = primary.info("replication")["master_repl_offset"]
                return bool(replica.info("replication")["slave_repl_offset"] >= offset)

        eventually(is_equal, "the replica does not follow")

    def fail_over(self) -> None:
        """Kill the primary, and return when the replica has become it."""
        os.kill(self.primary.pid, signal.SIGKILL)
        with self.replica.client() as client:
            eventually(lambda: client.info("replication")["role"] == "master", "no failover")
        with self._sentinel.client() as client:
            port = self.replica.port
            eventually(lambda: client.sentinel_masters()[self.name]["port"] == port, "no failover")

    def stop(self) -> None:
        for server in (self._sentinel, self.replica, self.primary):
            server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
