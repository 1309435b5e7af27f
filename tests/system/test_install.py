"""`parsupd install` and `uninstall` below another root, as packages use them, and their mistakes."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from parsupd_process import PARSUPD, ROOT

from parsupd.app import cli as parsupd
from parsupd.ctl.main import cli as parsupctl

HERE = Path(PARSUPD).parent


def run(*argv: str, home: Path | None = None, user: int | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home or "/nonexistent")}
    return subprocess.run([PARSUPD, *argv], check=False, capture_output=True, text=True, env=env, user=user, timeout=30)


def files_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_installing_twice_and_removing(tmp_path: Path) -> None:
    """The second time changes nothing; removing leaves no file, and no directory of parsupd's own."""
    first = run("install", "--root", str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert {line.split()[0] for line in first.stdout.splitlines()} == {"create"}
    files = files_in(tmp_path)
    assert f"ExecStart={HERE}/parsupd\n" in files["usr/local/lib/systemd/system/parsupd.service"]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in files} == {0o644}
    again = run("install", "--root", str(tmp_path))
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"unchanged"}
    assert files_in(tmp_path) == files
    assert run("uninstall", "--root", str(tmp_path)).returncode == 0
    assert files_in(tmp_path) == {}
    assert not list(tmp_path.rglob("*parsupd*"))
    assert run("uninstall", "--root", str(tmp_path)).stdout == "nothing is installed there\n"


def test_a_dry_run_shows_each_file_and_writes_none(tmp_path: Path) -> None:
    """A new file is shown with its whole text, a changed one with its changes, and nothing happens."""
    shown = run("install", "--root", str(tmp_path), "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    run("install", "--root", str(tmp_path))
    for name, text in files_in(tmp_path).items():
        block = "".join(f"    | {line}\n" for line in text.splitlines())
        assert f"create     {tmp_path}/{name}\n{block}" in shown
    socket = tmp_path / "usr/local/lib/systemd/system/parsupd.socket"
    socket.write_text(socket.read_text().replace("SocketMode=0600", "SocketMode=0666"))
    before = files_in(tmp_path)
    changes = run("install", "--root", str(tmp_path), "--dry-run").stdout
    assert f"update     {socket}\n" in changes
    assert "    -SocketMode=0666\n    +SocketMode=0600\n" in changes
    run("uninstall", "--root", str(tmp_path), "--dry-run")
    assert files_in(tmp_path) == before


def test_a_changed_configuration_is_kept(tmp_path: Path) -> None:
    """Neither installing nor removing touches what the operator wrote."""
    run("install", "--root", str(tmp_path))
    main, unit = tmp_path / "etc/parsupd/parsupd.toml", tmp_path / "etc/parsupd/units.d/mine.toml"
    main.write_text("[parsupd]\nlog = 'json'\n")
    unit.parent.mkdir()
    unit.write_text("[unit.mine]\n")
    assert f"keep       {main}: it was changed\n" in run("install", "--root", str(tmp_path)).stdout
    removed = run("uninstall", "--root", str(tmp_path)).stdout
    assert f"keep       {main}: it was changed\n" in removed
    assert files_in(tmp_path) == {
        "etc/parsupd/parsupd.toml": "[parsupd]\nlog = 'json'\n",
        "etc/parsupd/units.d/mine.toml": "[unit.mine]\n",
    }


def test_a_user_installs_at_home(tmp_path: Path) -> None:
    """With --user every file is below the home directory, and the next command is the user's."""
    done = run("install", "--user", "--dry-run", home=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if line.startswith("create"):
            assert line.split()[1].startswith((f"{tmp_path}/.local/", f"{tmp_path}/.config/parsupd/")), line
    assert done.stdout.splitlines()[-1] == "next: systemctl --user enable --now parsupd"


def test_the_default_configuration_can_be_used(tmp_path: Path) -> None:
    """parsupd accepts the configuration that it installs."""
    run("install", "--root", str(tmp_path))
    checked = run("--config", str(tmp_path / "etc/parsupd/parsupd.toml"), "--check")
    assert checked.stdout.endswith(": 0 units, no problem found\n"), checked.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_those_of_the_commands(tmp_path: Path, shell: str) -> None:
    """What is installed for a shell is what `parsupctl completion` prints, so it is never out of date."""
    run("install", "--root", str(tmp_path))
    places = {
        "bash": "bash-completion/completions/{}",
        "zsh": "zsh/site-functions/_{}",
        "fish": "fish/vendor_completions.d/{}.fish",
    }
    share = tmp_path / "usr/local/share"
    printed = subprocess.run(
        [f"{HERE}/parsupctl", "completion", shell], check=True, capture_output=True, text=True
    ).stdout
    assert (share / places[shell].format("parsupctl")).read_text().strip() == printed.strip()
    assert (share / places[shell].format("parsupd")).read_text().strip() == (
        printed.strip().replace("parsupctl", "parsupd").replace("PARSUPCTL", "PARSUPD")
    )


@pytest.mark.parametrize(("typed", "offered"), [("parsupctl sta", "start status"), ("parsupd uni", "uninstall")])
def test_bash_completes(tmp_path: Path, typed: str, offered: str) -> None:
    """bash, with the installed file, offers the commands."""
    run("install", "--root", str(tmp_path))
    command, word = typed.split()
    script = (
        f"source {tmp_path}/usr/local/share/bash-completion/completions/{command}\n"
        f"COMP_WORDS=({typed}); COMP_CWORD=1\n_{command}_completion {command} {word}\necho $(printf '%s\\n' ${{COMPREPLY[@]}} | sort)"
    )
    env = {"PATH": f"{HERE}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == offered, done.stderr


def test_without_root_the_way_out_is_named(tmp_path: Path) -> None:
    """Who may not install for everybody is told both ways to go on."""
    if os.geteuid() == 0:
        # As somebody else, who may not be allowed to read the checkout.
        code = "import os, sys; os.setuid(65534); from parsupd.app import main; sys.argv[:] = sys.argv[1:]; main()"
        argv = [
            f"{HERE}/python",
            "-c",
            f"import parsupd.app, parsupd.install; {code}",
            PARSUPD,
            "install",
            "--commands",
            str(HERE),
        ]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    else:
        done = run("install", "--commands", str(HERE), home=tmp_path)
    assert done.returncode == 2
    assert f"sudo {PARSUPD} install --commands {HERE}\n" in done.stderr
    assert f" {PARSUPD} install --commands {HERE} --user\n" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--commands", "/srv/a;b"], "';' cannot stand in the path of a service's command"),
        (["--root", "/dev/null"], "'/dev/null/usr/local/lib/systemd/system/parsupd.service' cannot be read: Not a directory"),
        (["--root", "/proc/1"], "cannot be created"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options: list[str], says: str) -> None:
    """A path that cannot be used is named with the reason, and there is no traceback."""
    done = run("install", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("parsupd: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("page", "group"), [("parsupctl.1.md", parsupctl), ("parsupd.8.md", parsupd)])
def test_manuals_name_every_command_and_option(page: str, group: click.Group) -> None:
    """What --help offers has its place in the manual."""
    text = (ROOT / "deploy" / "man" / page).read_text()
    missing = [
        name
        for command in (group, *(one for one in group.commands.values() if not one.hidden))
        for name in (command.name, *(option for param in command.params for option in param.opts if option[:2] == "--"))
        if name not in {None, "--version", "cli"}
        and not re.search(rf"(?<![\w-]){re.escape(name or '')}(?![\w-])", text)
    ]
    assert missing == [], f"deploy/man/{page} does not name them"
