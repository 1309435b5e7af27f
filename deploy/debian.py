"""Builds a Debian package: parsupd with what it depends on, in a virtual environment of its own below /usr/lib/parsupd.

Bundled, because Debian has several of them in no version that would do; and in a virtual environment, because workers
are started by the interpreter that runs parsupd, and must find workerlib there. The files beside it come from
`parsupd install`, as on every other system.

    python deploy/debian.py FOLDER [INTERPRETER]

writes FOLDER/parsupd_VERSION_ARCHITECTURE.deb for machines whose INTERPRETER (/usr/bin/python3) has the version of the
one here. Needs pip, dpkg-deb, and the package index that pip is set up for.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = "usr/lib/parsupd"

CONTROL = """\
Package: parsupd
Version: {version}
Architecture: {architecture}
Maintainer: The parsupd developers <parsupd@localhost>
Installed-Size: {size}
Depends: {python}, init-system-helpers (>= 1.54)
Recommends: systemd
Section: admin
Priority: optional
Description: supervises worker processes and other programs like systemd units
 parsupd keeps Python workers and other programs in the state that unit files ask
 for, and runs the name server in which Pyro5 clients find the workers. parsupctl
 controls it. The library workerlib is inside, for the workers that it starts.
"""
# What debhelper's snippets do, for a service that the operator may have disabled or masked. An upgrade restarts it, and
# leaves its workers alone. The socket is for those who want a start on demand: it is installed, and not enabled.
SCRIPTS = {
    "postinst": """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
if command -v systemd-sysusers >/dev/null; then systemd-sysusers parsupd.conf; fi
if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create parsupd.conf || true; fi
deb-systemd-helper unmask parsupd.service >/dev/null || true
if deb-systemd-helper --quiet was-enabled parsupd.service; then
    deb-systemd-helper enable parsupd.service >/dev/null || true
else
    deb-systemd-helper update-state parsupd.service >/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -n "$2" ]; then deb-systemd-invoke restart parsupd.service; else deb-systemd-invoke start parsupd.service; fi
fi
""",
    "prerm": """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then deb-systemd-invoke stop parsupd.service parsupd.socket; fi
""",
    "postrm": """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    deb-systemd-helper purge parsupd.service parsupd.socket >/dev/null || true
    rm -rf /var/lib/parsupd
fi
if [ "$1" = remove ] || [ "$1" = purge ]; then
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
    rm -rf /run/parsupd
fi
""",
}


def run(*argv: str) -> str:
    """Its output. Ends the program with what it said when it fails."""
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{argv[0]} is needed to build a Debian package, and is not there")
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def environment(tree: Path, interpreter: str) -> str:
    """Makes the virtual environment below `tree`; returns the version of parsupd."""
    home = tree / HOME
    python = str(home / "bin/python3")
    run(interpreter, "-m", "venv", "--without-pip", str(home))
    with tempfile.TemporaryDirectory(prefix="parsupd-wheel-") as wheels:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python)
        run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, str(ROOT))
        (wheel,) = Path(wheels).iterdir()
        options = ("--no-compile", "--only-binary=:all:", "--root-user-action=ignore")
        run(*pip, "install", *options, str(wheel))
    version = run(str(home / "bin/parsupd"), "--version").split()[-1]
    for script in (home / "bin").iterdir():
        if script.name in {"parsupd", "parsupctl"}:
            text = script.read_text(encoding="utf-8")
            script.write_text(re.sub(r"\A#!.*", f"#!/{HOME}/bin/python3", text), encoding="utf-8")
        elif not script.name.startswith("python"):
            script.unlink()  # commands of what it depends on, and scripts that activate an environment
    settings = home / "pyvenv.cfg"
    kept = [line for line in settings.read_text(encoding="utf-8").splitlines() if not line.startswith("command")]
    settings.write_text("\n".join([*kept, ""]), encoding="utf-8")
    for note in home.rglob("direct_url.json"):  # where it was built
        note.unlink()
    # Written now and never checked, so that nothing appears below /usr later, when root runs it.
    compiler = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", "/")
    run(python, *compiler, str(home / "lib"))
    return version


def files(tree: Path) -> None:
    """Everything else that the package holds."""
    parsupd = tree / HOME / "bin"
    install = ("-m", "parsupd", "install", "--root", str(tree), "--prefix", "/usr", "--commands", "/usr/bin")
    run(str(parsupd / "python3"), *install)
    (tree / "etc/parsupd/units.d").mkdir()
    (tree / "usr/bin").mkdir()
    for name in ("parsupd", "parsupctl"):
        (tree / "usr/bin" / name).symlink_to(f"../lib/parsupd/bin/{name}")
    documents = tree / "usr/share/doc/parsupd"
    shutil.copy(ROOT / "LICENSE", documents / "copyright")
    shutil.copy(ROOT / "CHANGELOG.md", documents / "changelog")
    for page in (*(tree / "usr/share/man").rglob("*.[1-8]"), documents / "changelog"):
        Path(f"{page}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
        page.unlink()


def build(folder: Path, interpreter: str) -> Path:
    """Returns the package's path."""
    with tempfile.TemporaryDirectory(prefix="parsupd-deb-") as temporary:
        tree = Path(temporary)
        tree.chmod(0o755)
        version = environment(tree, interpreter)
        files(tree)
        architecture = run("dpkg", "--print-architecture")
        control = tree / "DEBIAN"
        control.mkdir()
        size = sum(path.lstat().st_size for path in tree.rglob("*")) // 1024
        python = Path(interpreter).resolve().name
        fields = CONTROL.format(version=version, architecture=architecture, size=size, python=python)
        (control / "control").write_text(fields, encoding="utf-8")
        (control / "conffiles").write_text("/etc/parsupd/parsupd.toml\n", encoding="utf-8")
        for name, script in SCRIPTS.items():
            (control / name).write_text(script, encoding="utf-8")
            (control / name).chmod(0o755)
        folder.mkdir(parents=True, exist_ok=True)
        package = folder / f"parsupd_{version}_{architecture}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zzstd", "--build", str(tree), str(package))
        return package


if __name__ == "__main__":
    os.umask(0o022)
    print(build(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "/usr/bin/python3"))
