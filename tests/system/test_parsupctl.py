"""parsupctl against a real daemon: every command, every exit status, what a script may rely on."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from parsupctl_process import PARSUPCTL, Controlled, StartDaemon
from support import alive, wait_until

from parsupd.core import addresses
from parsupd.core.units import ActiveState
from parsupd.ctl import acting
from parsupd.shell import nameserver

PROGRAMS = Path(__file__).parent / "programs"

CONFIG = f"""
[unit.pricing]
type = "worker"
worker = "ctl_workers:Pricing"
instances = 2
description = "Prices things"
environment = {{ PYTHONPATH = "{PROGRAMS}:{os.environ.get("PYTHONPATH", "")}" }}
stdout = "null"
stderr = "null"

[unit.web]
type = "simple"
exec = ["/bin/sleep", "1000"]
description = "A web server"
stdout = "null"
stderr = "null"

[unit.broken]
type = "simple"
exec = ["/bin/sh", "-c", "exit 3"]
restart = "no"
stdout = "null"
stderr = "null"

[unit.slow]
type = "oneshot"
exec = ["/bin/sleep", "1000"]
enabled = false
stdout = "null"
stderr = "null"

[unit.never]
type = "worker"
worker = "ctl_workers:Pricing"
enabled = false
stdout = "null"
stderr = "null"
"""


@pytest.fixture(scope="module")
def shared(daemon: StartDaemon) -> Controlled:
    """One daemon for the tests that leave it as it was."""
    running = daemon(CONFIG)
    assert running.ctl("wait", "pricing", "web", "--timeout", "20").returncode == 0
    wait_until(lambda: running.ctl("wait", "broken", "--for", "failed", "--timeout", "10").returncode == 0)
    return running


def without_daemon(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PARSUP", "XDG", "RUNTIME"))}
    return subprocess.run(
        [PARSUPCTL, *args], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=30, check=False
    )


# list, status, why, names, info


def test_list_json_has_the_promised_keys(shared: Controlled) -> None:
    """An array, one object an instance, with these keys first and in this order, and values of these types."""
    done = shared.ctl("list", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    for entry in found:
        assert list(entry)[:10] == [
            "name", "unit", "type", "state", "sub_state", "pid", "generation", "restarts", "since", "uri",
        ]  # fmt: skip
    assert [entry["name"] for entry in found] == ["pricing@1", "pricing@2", "web@1", "broken@1", "slow@1", "never@1"]
    first = found[0]
    assert (first["unit"], first["type"], first["state"], first["sub_state"]) == (
        "pricing", "worker", "active", "running",
    )  # fmt: skip
    assert alive(first["pid"])
    assert first["uri"].startswith("PYRO:pricing-1-")
    assert found[4]["pid"] is None
    assert (found[0]["since"] > 1e9, found[5]["since"]) == (True, None)
    assert found[4]["uri"] == ""


def test_list_is_a_table_of_plain_text_in_a_pipe(shared: Controlled) -> None:
    """Aligned columns, no escape sequences, no trailing blanks."""
    lines = shared.ctl("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "STATE", "PID", "GENERATION", "RESTARTS", "SINCE"]
    assert len(lines) == 7
    column = lines[0].index("STATE")
    assert lines[1][column:].startswith("active (running)")
    assert lines[4][column:].startswith("failed (failed)")
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def on_terminal(shared: Controlled, *args: str) -> str:
    """What parsupctl writes when its stdout is a terminal."""
    leader, follower = pty.openpty()
    try:
        env = {**shared.env(), "TERM": "xterm", "COLUMNS": "150"}
        env.pop("NO_COLOR", None)
        process = subprocess.Popen([PARSUPCTL, *args], env=env, stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
            while data := os.read(leader, 65536):
                output += data
        process.wait(30)
        return output.decode()
    finally:
        os.close(leader)


@pytest.mark.parametrize("args", [("list",), ("status",), ("status", "web")], ids=" ".join)
def test_a_terminal_gets_colours(shared: Controlled, args: tuple[str, ...]) -> None:
    """Tables and states are coloured there, and only there."""
    assert "\x1b[32m" in on_terminal(shared, *args)
    assert "\x1b" not in shared.ctl(*args).stdout


def test_top_is_live_on_a_terminal(shared: Controlled) -> None:
    """All rows, again and again, on the other screen, until Ctrl-C, which is how it is meant to end: status 0."""
    leader, follower = pty.openpty()
    output = b""
    try:
        command = [PARSUPCTL, "top", "--delay", "0.1"]
        with subprocess.Popen(command, env=shared.env(), stdin=follower, stdout=follower, stderr=follower) as process:
            os.close(follower)
            while output.count(b"\x1b[H\x1b[J") < 3:
                output += os.read(leader, 65536)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):
                while data := os.read(leader, 65536):
                    output += data
    finally:
        os.close(leader)
    assert process.returncode == 0
    assert output.startswith(b"\x1b[?1049h")
    assert output.endswith(b"\x1b[?1049l")
    first = output.split(b"\x1b[H\x1b[J")[1].decode()
    assert all(name in first for name in ("pricing@1", "pricing@2", "web@1", "broken@1", "slow@1", "never@1")), first


def test_status_of_one_instance_reads_like_systemctl(shared: Controlled) -> None:
    """Title, file, type, state with since when, reason, pid, what its processes take."""
    text = shared.ctl("status", "web").stdout
    assert re.fullmatch(
        r"● web@1 - A web server\n"
        r"    Loaded: /\S+\.toml \(enabled\)\n"
        r"      Type: simple\n"
        r"    Active: active \(running\) since \w{3} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+; \S+( \S+)? ago\n"
        r"    Reason: .+\n"
        r"    Target: up\n"
        r"  Main PID: \d+\n"
        r"     Tasks: \d+\n"
        r"    Memory: [\d.]+[KM]\n"
        r"       CPU: \d+ms\n"
        r"       Run: 1 \(0 restarts\)\n",
        text,
    ), text


def test_status_of_many_is_a_table(shared: Controlled) -> None:
    """Without a UNIT all instances are shown and the status is 0, whatever state they are in."""
    done = shared.ctl("status")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "PID", "SINCE", "REASON"]
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("units", "status"),
    [(["web"], 0), (["pricing"], 0), (["pricing@2", "web@1"], 0), (["broken"], 3), (["web", "slow"], 3), (["nope"], 4)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_status_of_status(shared: Controlled, units: list[str], status: int) -> None:
    """0 when all named units are active, 3 when one is not, 4 when there is none of that name; with --json as well."""
    assert shared.ctl("status", *units).returncode == status
    assert shared.ctl("status", "--json", *units).returncode == status


def test_status_json_follows_the_keys_of_list(shared: Controlled) -> None:
    """The same keys and values, and more that only status shows."""
    (entry,) = json.loads(shared.ctl("status", "pricing@2", "--json").stdout)
    listed = json.loads(shared.ctl("list", "--json").stdout)[1]
    assert {key: entry[key] for key in listed} == {**listed, "since": entry["since"]}
    assert set(entry) - set(listed) == {"description", "target", "reason", "next_run_at", "limits"}


def test_why_tells_how_the_last_run_ended(shared: Controlled) -> None:
    """Cause, decision and reason, as text and as JSON."""
    text = shared.ctl("why", "broken").stdout
    assert text.startswith("broken@1 is failed (failed): ")
    assert "exited with 3" in text
    assert "not restarted: restart=no" in text
    (found,) = json.loads(shared.ctl("why", "broken", "--json").stdout)
    assert found["name"] == "broken@1"
    assert found["incarnations"][0]["cause"] == "exited with 3"
    assert found["incarnations"][0]["restarted"] is False


def test_names_lists_the_name_server(shared: Controlled) -> None:
    """Ready workers and the daemon's own objects, with URIs and metadata."""
    found = json.loads(shared.ctl("names", "--json").stdout)
    assert [list(entry) for entry in found] == [["name", "uri", "metadata"]] * 4
    assert [entry["name"] for entry in found] == ["Pyro.NameServer", "parsup.Supervisor", "pricing@1", "pricing@2"]
    assert "unit:pricing" in found[2]["metadata"]
    assert shared.ctl("names").stdout.splitlines()[0].split() == ["NAME", "URI", "METADATA"]


def test_info_shows_the_daemon(shared: Controlled) -> None:
    """Version, pid, directory, socket."""
    found = json.loads(shared.ctl("info", "--json").stdout)
    assert found["pid"] == shared.pid
    assert found["runtime_dir"] == str(shared.runtime)
    assert found["socket"] == str(shared.runtime / addresses.SOCKET)
    assert f"pid: {shared.pid}\n" in shared.ctl("info").stdout


# start, stop, restart, wait


def test_stop_and_start_wait_for_the_result(shared: Controlled) -> None:
    """The state printed is the one that was reached; doing it again changes nothing and succeeds."""
    for _ in range(2):
        stopped = shared.ctl("stop", "web")
        assert (stopped.returncode, stopped.stdout) == (0, "web@1 inactive (dead)\n")
    assert shared.ctl("status", "web").returncode == 3
    for _ in range(2):
        started = shared.ctl("start", "web")
        assert (started.returncode, started.stdout) == (0, "web@1 active (running)\n")


def test_restart_gives_a_new_process(shared: Controlled) -> None:
    """Another pid and generation; also when all workers of the daemon are restarted at once."""
    before = json.loads(shared.ctl("status", "pricing", "--json").stdout)
    after = json.loads(shared.ctl("restart", "pricing", "--json").stdout)
    assert [entry["generation"] for entry in after] == [entry["generation"] + 1 for entry in before]
    assert not {entry["pid"] for entry in before} & {entry["pid"] for entry in after}
    assert all(entry["state"] == "active" for entry in after)


def test_a_start_that_fails_says_why(shared: Controlled) -> None:
    """Status 1, the reason, and where to look; the state goes to stdout all the same."""
    done = shared.ctl("restart", "broken", "--json")
    if json.loads(done.stdout)[0]["state"] == "active":  # it was seen between its exec and its exit
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert "broken@1 is failed" in done.stderr
    assert "see `parsupctl why broken`" in done.stderr


def test_waiting_has_a_limit(shared: Controlled) -> None:
    """`start --timeout` gives up waiting with status 1 and leaves the start under way; `--no-wait` returns at once."""
    done = shared.ctl("start", "slow", "--timeout", "0.1")
    assert done.returncode == 1
    assert done.stderr == "parsupctl: not within 0.1 s: slow@1 (starting)\n"
    assert shared.ctl("wait", "slow", "--for", "activating", "--timeout", "10").returncode == 0
    assert shared.ctl("start", "slow", "--no-wait").stdout == "slow@1 activating (starting)\n"
    assert shared.ctl("stop", "slow").returncode == 0


def test_wait_gives_up_in_time(shared: Controlled) -> None:
    """Status 1, and what was not reached."""
    done = shared.ctl("wait", "web", "--for", "failed", "--timeout", "0.1")
    assert done.returncode == 1
    assert done.stderr == "parsupctl: not within 0.1 s: web@1 (running)\n"


def test_wait_knows_the_states_of_the_daemon(shared: Controlled) -> None:
    """A state that does not exist is wrong usage, refused here; the list is that of the daemon."""
    assert shared.ctl("wait", "web", "--for", "flying").returncode == 2
    assert set(acting.STATES) == {state.value for state in ActiveState}


@pytest.mark.parametrize("command", ["status", "why", "start", "stop", "restart", "wait"])
def test_an_unknown_unit_is_told_with_the_nearest(shared: Controlled, command: str) -> None:
    """Status 4 and the likeliest name meant."""
    done = shared.ctl(command, "pricin")
    assert done.returncode == 4
    assert done.stderr == "parsupctl: no unit or instance 'pricin'; did you mean 'pricing'?\n"


# call


@pytest.mark.parametrize(
    ("args", "printed"),
    [
        (["quote", '"EURUSD"'], '{"EURUSD":1.5}'),
        (["quote", '"EURUSD"', "-2"], '{"EURUSD":-3.0}'),
        (["quote", "--arg", 'symbol="X"', "--arg", "factor=2.0"], '{"X":3.0}'),
        (["book", '[{"symbol": "A", "amount": 5}, {"symbol": "B", "amount": -12}]'], "-7"),
        (["only_by_name", "--arg", 'text="a=b"'], '"a=b"'),
        (["odd"], '["2024-02-29","AP8="]'),
        (["ticks", "3"], "0\n1\n2"),
        (["ticks", "0"], ""),
        (["note", '"hello"'], ""),
        (["notes", "--instance", "2"], "[]"),
        (["written", "3"], "0\n1\n2"),
        (["countdown", "7"], "7\n0\n1"),
        (["total", "[1, 2, 3]"], "6"),
        (["total", "[1, 2, 3]", "--arg", "start=10"], "16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_call_prints_the_result_as_json(shared: Controlled, args: list[str], printed: str) -> None:
    """Each argument is JSON, by position or by name; a stream prints one line an item, a one_way nothing.

    A state function prints its snapshot first; a reverse pipe takes its items from an array, the first argument.
    """
    done = shared.ctl("call", "pricing", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.removesuffix("\n") == printed


def test_a_pipe_prints_each_item_as_it_comes(shared: Controlled) -> None:
    """The first item is there while the function still runs; Ctrl-C ends it quietly with 130."""
    with shared.start_ctl("call", "pricing", "one_then_wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "\n"), "the line of the terminal's ^C is ended, no more"
        assert process.returncode == 130


def test_a_closed_pipe_ends_it_quietly(shared: Controlled) -> None:
    """As with `| head -1`: nothing on stderr."""
    with shared.start_ctl("call", "pricing", "ticks", "10000000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(10) == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["quote", "EURUSD"], 2, "argument 1 is not JSON: EURUSD"),
        (["quote", '"a"', "1,5"], 2, "argument 2 is not JSON: 1,5"),
        (["quote", "--arg", "symbol=a"], 2, "--arg symbol is not JSON: a"),
        (["quote", "--arg", "symbol"], 2, "write NAME=JSON"),
        (["qoute", '"a"'], 1, "parsupctl: pricing@1 has no function 'qoute'; did you mean 'quote'?"),
        (["quote", "5"], 1, "parsupctl: Pricing.quote: argument symbol: Expected `str`, got `int`"),
        (["book", '[{"symbol": "A", "amount": "5"}]'], 1, "argument orders[0].amount: Expected `int`, got `str`"),
        (["quote"], 1, "argument symbol is missing"),
        (["fail"], 1, "parsupctl: pricing@1.fail raised KeyError: 'x'\n"),
        (["look_up"], 1, "parsupctl: pricing@1.look_up raised LookupError: this is the function's own error\n"),
        (["hang", "--timeout", "0.1"], 1, "parsupctl: hang: no answer within 0.1 s\n"),
        (["no_json"], 1, "the result has no form in JSON"),
        (["quote", '"a"', "--instance", "7"], 4, "pricing has no instance 7"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_call_refuses(shared: Controlled, args: list[str], status: int, said: str) -> None:
    """Each mistake has its exit status and a message that names it; never a traceback of parsupctl."""
    done = shared.ctl("call", "pricing", *args)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_text_without_quotes_is_shown_with_them(shared: Controlled) -> None:
    """The message has what to type instead."""
    assert """'"EURUSD"'""" in shared.ctl("call", "pricing", "quote", "EURUSD").stderr


def test_the_workers_traceback_is_shown_when_asked_for(shared: Controlled) -> None:
    """With --traceback, the lines of the worker's own code."""
    assert 'raise KeyError("x")' in shared.ctl("call", "pricing", "fail", "--traceback").stderr


@pytest.mark.parametrize(
    ("unit", "status", "said"),
    [
        ("web", 1, "web is of type simple: only workers have functions to call"),
        ("never", 3, "no instance of never is ready: never@1 is inactive"),
        ("pricin", 4, "did you mean 'pricing'?"),
    ],
)
def test_a_unit_that_cannot_be_called(shared: Controlled, unit: str, status: int, said: str) -> None:
    """Not a worker: 1; not ready: 3; not there: 4."""
    done = shared.ctl("call", unit, "quote")
    assert done.returncode == status
    assert said in done.stderr


# The daemon is not there, or goes


def test_no_daemon_is_69_and_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """All places in their order, and how to name another."""
    done = without_daemon("status", cwd=tmp_path, XDG_RUNTIME_DIR=str(tmp_path / "xdg"))
    assert done.returncode == 69
    assert f"  {tmp_path}/xdg/parsupd/parsupd.sock: no such file or directory\n" in done.stderr
    assert "  .parsupd/parsupd.sock: no such file or directory\n" in done.stderr
    assert ("/run/parsupd/parsupd.sock" in done.stderr) == (os.geteuid() == 0)
    assert "--socket PATH or PARSUP_SOCKET" in done.stderr


def test_a_socket_that_nobody_listens_on_is_69(tmp_path: Path) -> None:
    """A daemon that was killed leaves such a file."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    done = without_daemon("--socket", str(path), "list", cwd=tmp_path)
    assert done.returncode == 69
    assert done.stderr == f"parsupctl: {path}: nobody listens there; the daemon that made this socket has gone\n"


def test_a_daemon_that_does_not_answer_is_69(tmp_path: Path) -> None:
    """Within --timeout."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        done = without_daemon("--socket", str(path), "--timeout", "0.1", "list", cwd=tmp_path)
    assert done.returncode == 69
    assert "no answer within 0.1 s" in done.stderr


def test_the_socket_is_found_in_the_same_places(shared: Controlled, tmp_path: Path) -> None:
    """By option and by variable, the socket or its directory; options win."""
    path = str(shared.runtime / addresses.SOCKET)
    nowhere = str(tmp_path / "nowhere")
    assert without_daemon("--socket", path, "info", cwd=tmp_path).returncode == 0
    assert without_daemon("--runtime-dir", str(shared.runtime), "info", cwd=tmp_path).returncode == 0
    assert without_daemon("info", cwd=tmp_path, PARSUP_SOCKET=path).returncode == 0
    assert without_daemon("info", cwd=tmp_path, PARSUP_RUNTIME_DIR=str(shared.runtime)).returncode == 0
    assert without_daemon("--socket", path, "info", cwd=tmp_path, PARSUP_SOCKET=nowhere).returncode == 0
    assert without_daemon("--socket", nowhere, "info", cwd=tmp_path, PARSUP_SOCKET=path).returncode == 69
    (tmp_path / "xdg").mkdir()
    (tmp_path / "xdg" / "parsupd").symlink_to(shared.runtime)
    if not (Path("/run/parsupd") / addresses.SOCKET).exists():
        assert without_daemon("info", cwd=tmp_path, XDG_RUNTIME_DIR=str(tmp_path / "xdg")).returncode == 0
        (tmp_path / ".parsupd").symlink_to(shared.runtime)
        assert without_daemon("info", cwd=tmp_path).returncode == 0


def test_the_names_of_the_objects_are_those_that_are_served() -> None:
    """parsupctl knows them without importing the daemon or Pyro5."""
    assert addresses.NAME_SERVER == nameserver.OBJECT


def test_shutdown_returns_when_the_daemon_has_gone(daemon: StartDaemon) -> None:
    """With --wait: the process is over and its exit status is the one asked for."""
    running = daemon(CONFIG)
    done = running.ctl("shutdown", "--wait", "--exit-code", "7", "--timeout", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert running.daemon.process.poll() == 7, "it has gone when the command returns"
    running.daemon.finish()
    assert running.ctl("list").returncode == 69


def test_shutdown_returns_at_once_without_wait(daemon: StartDaemon) -> None:
    """The daemon ends by itself then."""
    running = daemon(CONFIG)
    assert running.ctl("shutdown").returncode == 0
    assert running.daemon.finish()[0] == 0


def test_a_daemon_that_dies_during_a_command_is_69(daemon: StartDaemon) -> None:
    """The command ends at once and says what happened."""
    running = daemon('[unit.slow]\ntype = "simple"\nexec = ["/bin/sleep", "1000"]\nenabled = false\n')
    with running.start_ctl("wait", "slow") as process:
        wait_until(lambda: connected(process.pid))
        running.daemon.process.kill()
        running.daemon.finish()
        _, said = process.communicate(timeout=10)
    assert process.returncode == 69
    assert said.startswith("parsupctl: ")  # whether it was still shaking hands, or waited for its answer
    assert "closed by the peer" in said


def connected(pid: int) -> bool:
    """Whether the process sleeps with a socket open: it waits for its answer."""
    with contextlib.suppress(OSError):
        sockets = any(str(fd.readlink()).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())
        return sockets and Path(f"/proc/{pid}/wchan").read_text() != "0"
    return False


# The program itself

COMMANDS = ["apply", "call", "completion", "events", "import", "info", "kill", "leaks", "list", "logs", "names", "plan", "reexec", "reload", "restart", "run", "scale", "show", "shutdown", "start", "status", "stop", "top", "wait", "why"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(tmp_path: Path, command: str) -> None:
    """`COMMAND --help` needs no daemon and has an example that begins with the command."""
    done = without_daemon(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(rf"Examples?:\n +parsupctl {command}", done.stdout)


def test_help_lists_every_command_in_one_line(tmp_path: Path) -> None:
    """No description is cut off; -h is --help; --version tells the version."""
    done = without_daemon("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) {2,}\S", done.stdout.partition("Commands:")[2], re.MULTILINE) == COMMANDS
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert without_daemon("-h", cwd=tmp_path).stdout == done.stdout
    assert without_daemon("--version", cwd=tmp_path).stdout.startswith("parsupctl, version ")


@pytest.mark.parametrize("args", [(), ("frob",), ("status", "--frob"), ("start",), ("--timeout", "x", "list")], ids=str)
def test_wrong_usage_is_2(tmp_path: Path, args: tuple[str, ...]) -> None:
    """And shows how it is used, on stderr."""
    done = without_daemon(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: parsupctl" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("shell", "begins"),
    [("bash", "_parsupctl_completion()"), ("zsh", "#compdef parsupctl"), ("fish", "function _parsupctl_completion")],
)
def test_completion_scripts(tmp_path: Path, shell: str, begins: str) -> None:
    """One for each shell, printed without a daemon; an unknown shell is wrong usage."""
    done = without_daemon("completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.lstrip().startswith(begins)
    assert without_daemon("completion", "tcsh", cwd=tmp_path).returncode == 2


def complete(env: dict[str, str], words: str) -> list[str]:
    """What bash would be offered for the last word."""
    count = words.count(" ")
    env = {**env, "_PARSUPCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run([PARSUPCTL], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_unit_names_are_completed(shared: Controlled, tmp_path: Path) -> None:
    """Units and instances from the daemon; nothing, silently, when there is none."""
    assert complete(shared.env(), "parsupctl stop pri") == ["pricing", "pricing@1", "pricing@2"]
    assert complete(shared.env(), "parsupctl sta") == ["start", "status"]
    nowhere = {**shared.env(), "PARSUP_RUNTIME_DIR": str(tmp_path)}
    assert complete(nowhere, "parsupctl stop pri") == []


@pytest.mark.parametrize("args", [["--help"], ["status"], ["list", "--json"], ["status", "web"]], ids=" ".join)
def test_nothing_slow_is_imported(shared: Controlled, args: list[str]) -> None:
    """Off a terminal, neither an event loop nor Pyro5, structlog or rich is loaded, so that it starts in time."""
    code = (
        "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        f"sys.argv[1:] = {args!r}; from parsupd.ctl.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shared.env(), capture_output=True, text=True, check=True)
    slow = {"asyncio", "Pyro5", "structlog", "rich", "uvloop", "ssl", "tomllib", "logging"}
    assert not slow & set(done.stderr.split())
