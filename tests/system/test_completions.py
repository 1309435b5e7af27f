"""The completions of zsh and fish, as they are installed, in these shells themselves."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parsupctl_process import PARSUPCTL, Controlled, StartDaemon
from parsupd_process import PARSUPD
from support import wait_until

SHARE = Path("usr/local/share")
CASES = [
    ("parsupctl sta", {"start", "status"}),
    ("parsupctl stop pri", {"pricing", "pricing@1", "pricing@2", "printing", "printing@1"}),
    ("parsupctl logs --fo", {"--follow"}),
    ("parsupd uni", {"uninstall"}),
]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n\x00-\x1f]")
SLEEP = 'type = "simple"\nexec = ["sleep", "1000"]\nstdout = "null"\n'


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    return daemon(f"[unit.pricing]\ninstances = 2\n{SLEEP}[unit.printing]\n{SLEEP}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    subprocess.run([PARSUPD, "install", "--root", str(folder)], check=True, capture_output=True)
    return folder / SHARE


def environment(running: Controlled, home: Path) -> dict[str, str]:
    path = f"{Path(PARSUPCTL).parent}:{os.environ['PATH']}"
    return {**running.env(), "PATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "TERM": "xterm"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_fish_completes(typed: str, offered: set[str], running: Controlled, root: Path, tmp_path: Path) -> None:
    """It offers commands, options, and what units there are."""
    file = root / f"fish/vendor_completions.d/{typed.split(maxsplit=1)[0]}.fish"
    script = f"source {file}; complete -C '{typed}'"
    env = environment(running, tmp_path)
    done = subprocess.run(["fish", "-c", script], env=env, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_shows_whole_descriptions(running: Controlled, root: Path, tmp_path: Path) -> None:
    """Also behind a comma, at which click's own script cuts them off."""
    script = f"source {root / 'fish/vendor_completions.d/parsupctl.fish'}; complete -C 'parsupctl '"
    env = environment(running, tmp_path)
    done = subprocess.run(["fish", "-c", script], env=env, capture_output=True, text=True, timeout=30, check=True)
    shown = dict(line.split("\t") for line in done.stdout.splitlines())
    described = subprocess.run([PARSUPCTL, "--help"], capture_output=True, text=True, timeout=30, check=True).stdout
    commands = dict(re.findall(r"^  (\S+) {2,}(\S.*)$", described.partition("Commands:")[2], re.MULTILINE))
    assert any("," in text for text in commands.values())
    assert {name: shown.get(name) for name in commands} == commands


class Terminal:
    """A shell that believes that somebody types."""

    def __init__(self, master: int) -> None:
        self._master = master

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for_keys(self) -> None:
        """Waits until it reads key by key: before, the terminal itself would edit the line."""
        wait_until(lambda: not termios.tcgetattr(self._master)[3] & termios.ICANON, what="it reads keys")

    def wait_for(self, words: set[str], within_s: float = 20.0) -> None:
        """Waits until all these words have been shown since the last time."""
        give_up_at = time.monotonic() + within_s
        shown = ""
        while not words <= set(CONTROL.sub(" ", shown).split()):
            assert select.select([self._master], [], [], max(0.0, give_up_at - time.monotonic()))[0], shown
            shown += os.read(self._master, 65536).decode(errors="replace")


@contextmanager
def terminal(*argv: str, env: dict[str, str]) -> Iterator[Terminal]:
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, env)
    try:
        yield Terminal(master)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes(running: Controlled, root: Path, tmp_path: Path) -> None:
    """The same, found among its functions without being named."""
    env = {**environment(running, tmp_path), "ZDOTDIR": str(tmp_path)}
    (tmp_path / ".zshrc").write_text(
        f"fpath=({root}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D\n"
    )
    with terminal("zsh", "-d", "-i", env=env) as shell:
        shell.wait_for_keys()
        for typed, offered in CASES:
            shell.type(f"\x15{typed}\x04")  # an empty line, the words, and: list what there is
            shell.wait_for(offered)
