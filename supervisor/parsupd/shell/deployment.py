"""The files of deploy/ in this installation, the places that they are installed to, and systemd's commands for them."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from parsupd.core.installation import Action, File, Step
from workerlib import UsageError

PACKAGED = Path(__file__).parents[1] / "deploy"
"""In the wheel; an editable installation has it in the checkout."""
CHECKOUT = Path(__file__).parents[3] / "deploy"


def texts(sources: Iterable[str]) -> dict[str, str]:
    """Reads files of deploy/. Raises UsageError when this installation came without them."""
    deploy = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    try:
        return {source: (deploy / source).read_text(encoding="utf-8") for source in sources}
    except OSError as error:
        raise UsageError(f"this installation of parsupd came without {error.filename}: install its wheel") from None


def commands() -> str:
    """The directory of the parsupd that runs now. Raises UsageError when parsupctl is not beside it."""
    called = Path(sys.argv[0]).absolute()
    folder = called.parent if called.name == "parsupd" else Path(sys.executable).absolute().parent
    for name in ("parsupd", "parsupctl"):
        if not os.access(folder / name, os.X_OK):
            raise UsageError(f"there is no command {name} in {str(folder)!r}; say where it is with --commands")
    return str(folder)


def writers(folder: str) -> str | None:
    """Who else than root can change the commands in a directory, by the first place that allows it; None: nobody."""
    commands = [(Path(folder) / name).resolve() for name in ("parsupd", "parsupctl")]
    for place in dict.fromkeys(place for command in commands for place in (command, *command.parents)):
        try:
            status = place.stat()
        except OSError:
            return None  # there is nothing yet: a package is made
        if status.st_uid != 0:
            return f"user {status.st_uid} owns {str(place)!r}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            return f"others may write to {str(place)!r}"
    return None


def read(root: Path, paths: Iterable[str]) -> dict[str, str | None]:
    """What stands at each path below `root`: None for nothing. Raises UsageError for what is no readable file."""
    found: dict[str, str | None] = {}
    for path in paths:
        place = below(root, path)
        try:
            found[path] = place.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            found[path] = None
        except OSError as error:
            raise UsageError(f"{str(place)!r} cannot be read: {error.strerror}") from None
    return found


def below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def carry_out(root: Path, step: Step) -> None:
    """Writes or removes one file. Raises UsageError when that is not allowed or not possible."""
    place = below(root, step.file.path)
    try:
        if step.action in {Action.CREATE, Action.UPDATE}:
            _write(place, step.file)
        elif step.action is Action.REMOVE:
            place.unlink()
    except OSError as error:
        raise UsageError(f"{str(place)!r} cannot be {step.action.value}d: {error.strerror}") from None


def _write(place: Path, file: File) -> None:
    """By rename: nobody reads half a unit file, and what was a link to elsewhere becomes a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=".parsupd-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as temporary:
            temporary.write(file.text)
        Path(name).chmod(0o644)
        Path(name).rename(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_empty(root: Path, directories: Iterable[str]) -> list[str]:
    """Removes those that are empty; returns those that stay because they are not."""
    stay = []
    for directory in directories:
        try:
            below(root, directory).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            stay.append(directory)
    return stay


def systemd_runs() -> bool:
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def units_in_use(*, user: bool) -> list[str]:
    """Those of parsupd's units that systemd runs, or would start at the next boot."""
    manager = ["systemctl", *(["--user"] if user else [])]
    found = []
    for unit in ("parsupd.service", "parsupd.socket"):
        for question in ("is-active", "is-enabled"):
            answer = subprocess.run([*manager, question, "--quiet", unit], check=False, capture_output=True)
            if answer.returncode == 0 and unit not in found:
                found.append(unit)
    return found


def tell(command: list[str]) -> str | None:
    """Runs one of systemd's commands; returns what it said when it failed."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}")
