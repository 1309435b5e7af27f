"""parsupctl import: files that parsupd takes, remarks for people, and nothing overwritten."""

import json
import subprocess
from pathlib import Path

import pytest
from parsupctl_process import PARSUPCTL
from parsupd_process import PARSUPD

CONF = """
[supervisord]
logfile = /tmp/supervisord.log
[include]
files = more/*.conf
[program:web]
command = /usr/bin/env sleep 1000
autorestart = true
startsecs = 5
environment = KEY="value, with comma"
numprocs = 2
process_name = %(program_name)s_%(process_num)02d
"""
MORE = "[program:job]\ncommand = %(here)s/job %(ENV_WHO)s\nautostart = false\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "job.conf").write_text(MORE)
    path = tmp_path / "supervisord.conf"
    path.write_text(CONF)
    return path


def run(conf: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PARSUPCTL, "import", str(conf), *args],
        env={"WHO": "ann"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_files_pass_the_check_of_parsupd(conf: Path, tmp_path: Path) -> None:
    """One a unit, readable for their owner, with the remarks in them; included files count."""
    folder = tmp_path / "etc" / "units.d"
    done = run(conf, "-o", str(folder))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [str(folder / "web.toml"), str(folder / "job.toml")]
    assert "[program:web] startsecs: parsupd does not guess readiness" in done.stderr
    assert "[supervisord] logfile: " in done.stderr
    assert "startsecs" in (folder / "web.toml").read_text()
    assert f'exec = ["{tmp_path}/job", "ann"]' in (folder / "job.toml").read_text()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    main = tmp_path / "etc" / "parsupd.toml"
    main.write_text("")
    checked = subprocess.run([PARSUPD, "--check", "--config", str(main)], capture_output=True, text=True, check=True)
    assert "2 units, no problem found" in checked.stdout


def test_nothing_is_overwritten_without_force(conf: Path, tmp_path: Path) -> None:
    """When one file is there, none is written; --force writes them all."""
    (tmp_path / "web.toml").write_text("mine")
    done = run(conf, "-o", str(tmp_path))
    assert done.returncode == 1
    assert "already" in done.stderr
    assert ((tmp_path / "web.toml").read_text(), (tmp_path / "job.toml").exists()) == ("mine", False)
    assert run(conf, "-o", str(tmp_path), "--force").returncode == 0
    assert "[unit.web]" in (tmp_path / "web.toml").read_text()


def test_json_has_units_remarks_and_files(conf: Path) -> None:
    """Stable names; without -o nothing is written, and as text the files are printed."""
    found = json.loads(run(conf, "--json").stdout)
    assert list(found) == ["units", "remarks", "files"]
    assert found["units"]["web"]["instances"] == 2
    assert {"section", "key", "message"} == found["remarks"][0].keys()
    assert found["files"] == []
    assert '[unit.job]\ntype = "simple"\n' in run(conf).stdout


def test_a_file_that_cannot_be_used_is_told_with_its_place(conf: Path, tmp_path: Path) -> None:
    """Status 2 for what supervisord would refuse, 1 for what parsupd would; nothing is written."""
    conf.write_text("[program:x]\nautostart = true\n")
    done = run(conf, "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, f"parsupctl: {conf}: [program:x] has no command\n")
    conf.write_text("[program:x]\ncommand = x\nstopsignal = FROB\n")
    done = run(conf, "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "unit.x.kill_signal" in done.stderr
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "nothing").returncode == 2
