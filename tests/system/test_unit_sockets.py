"""Sockets that a unit's file names: opened once, passed as systemd passes them, shared, and kept over restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_daemon import Daemon, Info, daemon
from support import alive, wait_until

SERVER = """
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid())
listeners = [socket.socket(fileno=3 + index) for index in range(int(os.environ["LISTEN_FDS"]))]
while True:
    for listener in listeners[:1]:
        client, _ = listener.accept()
        client.sendall(f"{os.getpid()} {len(listeners)}".encode())
        client.close()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def config(*addresses: str, **keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    command = json.dumps([sys.executable, "-c", SERVER])
    return "\n".join(["[unit.web]", "type = 'simple'", f"exec = {command}", f"sockets = {list(addresses)!r}", *lines])


def ask(address: str) -> tuple[int, int]:
    """Who answers there, and how many sockets it was passed."""
    if address.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(address)
    else:
        host, _, port = address.rpartition(":")
        client = socket.create_connection((host, int(port)), timeout=10)
    with client:
        pid, count = client.recv(100).decode().split()
        return int(pid), int(count)


def running(status: Info) -> bool:
    return bool(status["sub_state"] == "running")


def test_all_instances_share_what_was_opened_once(tmp_path: Path) -> None:
    """Each process gets all sockets from descriptor 3 on; calls wait, and are not refused, while it is restarted."""
    address, path = f"127.0.0.1:{free_port()}", str(tmp_path / "web.sock")
    with daemon(tmp_path, config(address, path, instances=2)) as parsupd:
        pids = {parsupd.wait_for(f"web@{number}", running)["pid"] for number in (1, 2)}
        assert os.stat(path).st_mode & 0o777 == 0o600
        pid, count = ask(address)
        assert pid in pids
        assert count == 2
        for old in pids:
            os.kill(old, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)))  # one that is about to die may still accept, and answer nothing
        assert ask(address)[0] not in pids
        parsupd.call("stop", ["web"])
        with pytest.raises(ConnectionRefusedError):
            ask(address)
        assert not Path(path).exists()
        parsupd.call("start", ["web"])
        assert ask(address)[1] == 2


def test_they_stay_when_parsupd_is_replaced(tmp_path: Path) -> None:
    """An adopted process goes on answering on its socket."""
    address = f"127.0.0.1:{free_port()}"
    with daemon(tmp_path, config(address)) as parsupd:
        old = ask(address)
        parsupd.kill()
        assert ask(address) == old
        parsupd.start()
        assert ask(address) == old


def test_an_address_in_use_is_told(tmp_path: Path) -> None:
    """A unit whose address somebody else has does not start, and says which one it is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with daemon(tmp_path, config(address, restart="no")) as parsupd:
            status = parsupd.wait_for("web@1", lambda status: status["sub_state"] == "failed")
            assert address in status["reason"]
            assert "in use" in status["reason"]


def test_a_missing_program_is_told_with_sockets_too(tmp_path: Path) -> None:
    """The shell that passes the sockets on is not what the message speaks of."""
    text = config(f"127.0.0.1:{free_port()}", restart="no").replace(sys.executable, "/no/such/program")
    with daemon(tmp_path, text) as parsupd:
        status = parsupd.wait_for("web@1", lambda status: status["sub_state"] == "failed")
        assert "/no/such/program" in status["reason"]


@pytest.mark.parametrize(
    "address", ["80", "localhost:80", "127.0.0.1:0", "127.0.0.1:65536", "1.2.3.256:80", "[x]:1", "a/b"]
)
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    """Only numeric addresses with a port, and absolute paths."""
    path = tmp_path / "parsupd.toml"
    path.write_text(config(address))
    done = subprocess.run(
        [sys.executable, "-m", "parsupd", "--config", path, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert repr(address) in done.stderr
    assert "sockets[0]" in done.stderr


def test_the_service_manager_keeps_them(tmp_path: Path) -> None:
    """What is opened is given to the store of the service manager, what it hands back is used, and the rest is forgotten."""
    address = f"127.0.0.1:{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            parsupd = Daemon(tmp_path, config(address))
        finally:
            del os.environ["NOTIFY_SOCKET"]
        stored: dict[str, int] = {}
        while "listen-0-web" not in stored:
            message, fds, _, _ = socket.recv_fds(manager, 4096, 4)
            lines = dict(line.split("=", 1) for line in message.decode().splitlines())
            if "FDSTORE" in lines:
                stored[lines["FDNAME"]] = fds[0]
            else:
                for fd in fds:  # a barrier's
                    os.close(fd)
        assert {"control", "state"} <= stored.keys()
        kept = socket.socket(fileno=stored["listen-0-web"])
        assert f"{kept.getsockname()[0]}:{kept.getsockname()[1]}" == address
        kept.detach()
        assert ask(address)[1] == 1
        assert parsupd.stop() == 0
        for fd in stored.values():
            os.close(fd)
    wait_until(lambda: not (parsupd.runtime / "parsupd.sock").exists(), what="the control socket is removed")
