"""The command `import`: writes unit files for what another supervisor keeps running."""

from typing import TYPE_CHECKING, Any

import click

from parsupd.ctl import output
from parsupd.ctl.client import Failure

if TYPE_CHECKING:
    from pathlib import Path

    from parsupd.ctl.supervisord import Remark, Translation


@click.command(name="import", short_help="Write unit files for a supervisord.conf.")
@click.argument("file", metavar="supervisord.conf", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", "folder", metavar="DIR", help="Write one file a unit into DIR.  [default: print them]")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print units, remarks and files as JSON.")
def import_(file: str, folder: str | None, force: bool, as_json: bool) -> None:
    """Write unit files for the programs of a supervisord.conf, and say what has no equivalent.

    Programs, also of fcgi-program sections and of included files, become units; %(here)s, %(program_name)s,
    %(process_num)d and %(ENV_x)s are filled in. For each key that means something else here, or nothing, a line on
    stderr says what there is instead; the same lines are comments in the files. What is written passes
    `parsupd --check`, or nothing is written. No daemon is needed.

    With --json: units (by name, as in a unit file), remarks (section, key, message), files.

    \b
    Examples:
      parsupctl import /etc/supervisor/supervisord.conf
      parsupctl import supervisord.conf -o /etc/parsupd/units.d
    """
    import os  # noqa: PLC0415 - `--help` does not pay for all these
    from pathlib import Path  # noqa: PLC0415 - same

    from parsupd.ctl import supervisord  # noqa: PLC0415 - same

    main = Path(file).absolute()
    try:
        found = supervisord.translate(_sections(main), str(main.parent), os.environ, os.uname().nodename)
    except supervisord.NotSupervisordError as error:
        raise Failure(f"{file}: {error}", status=2) from None
    texts = _texts(found, main)
    files = [] if folder is None else _write(Path(folder), texts, force=force)
    if as_json:
        remarks = [remark._asdict() for remark in found.remarks]
        output.as_json({"units": found.units, "remarks": remarks, "files": [str(path) for path in files]})
        return
    if folder is None:
        click.echo("\n".join(texts.values()), nl=False)
    for remark in found.remarks:
        click.echo(f"{file}: {remark}", err=True)
    for path in files:
        click.echo(path)


def _sections(main: "Path") -> dict[str, dict[str, str]]:
    """Those of the file and of what it includes. Raises NotSupervisordError, Failure."""
    from parsupd.ctl import supervisord  # noqa: PLC0415 - as above

    found = supervisord.sections(_read(main), str(main))
    for pattern in supervisord.includes(found):
        pattern = pattern.replace("%(here)s", str(main.parent))  # noqa: PLW2901 - the same one, filled in
        root = main.parent if not pattern.startswith("/") else main.parent.__class__("/")
        for path in sorted(root.glob(pattern.lstrip("/"))):
            found |= supervisord.sections(_read(path), str(path))
    return found


def _read(path: "Path") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: is no text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


def _texts(found: "Translation", main: "Path") -> dict[str, str]:
    """The text of each unit's file. Raises Failure when parsupd would refuse them."""
    from parsupd.core import toml_text, unitfile  # noqa: PLC0415 - as above

    texts = {}
    for unit, table in found.units.items():
        about = [f"# {remark}" for remark in found.remarks if _is_about(remark, unit)]
        lines = [f"{toml_text.key(key)} = {toml_text.value(value)}" for key, value in table.items()]
        texts[unit] = "\n".join([f"# From {main}", *about, f"[unit.{toml_text.key(unit)}]", *lines, ""])
    try:
        unitfile.parse([(f"{unit}.toml", text) for unit, text in texts.items()], "")
    except unitfile.ConfigurationError as error:
        raise Failure(f"{main}: what it says cannot be a unit file:\n{error}") from None
    return texts


def _is_about(remark: "Remark", unit: str) -> bool:
    name = remark.section.partition(":")[2]
    return bool(name) and (unit == name or unit.rpartition("-")[0] == name)


def _write(folder: "Path", texts: dict[str, str], *, force: bool) -> list["Path"]:
    """Writes all files, or none. Raises Failure."""
    import os  # noqa: PLC0415 - as above

    files = {folder / f"{unit}.toml": text for unit, text in texts.items()}
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise Failure(f"there is {', '.join(there)} already: give --force to overwrite, or another DIR")
    made: list[Any] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            # For their owner only, when they are new: variables may be secrets.
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
            with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        if not force:
            for path in made:
                path.unlink(missing_ok=True)
        raise Failure(f"{error.filename or folder}: {error.strerror}") from None
    return made
