"""The configuration's files: which there are, and what they say."""

import glob
import stat
from pathlib import Path

from parsupd.core.unitfile import include_patterns, parse
from parsupd.core.units import Configuration
from parsupd.shell import accounts
from workerlib import UsageError


def load(path: Path) -> Configuration:
    """Reads the main file and those that it includes. Raises UsageError and ConfigurationError."""
    main = str(path)
    text = read_config_text(path)
    included = sorted(
        {found for pattern in include_patterns(main, text) for found in glob.glob(pattern)}  # noqa: PTH207 - absolute
    )
    files = [(main, text), *((name, read_config_text(Path(name))) for name in included if name != main)]
    return parse(files, main, accounts.problems)


def read_config_text(path: Path, what: str = "configuration") -> str:
    """Raises UsageError that names the file and what is wrong with it. A byte order mark is no part of the text."""
    check_utf_8(path, f"path of the {what}", "give it another name")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for, a device may never end
            raise UsageError(f"the {what} {str(path)!r} is not a regular file")
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UsageError(f"the {what} {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the {what} {str(path)!r} is not UTF-8: {error}") from None


def check_utf_8(path: Path, what: str, way_out: str) -> None:
    """Raises UsageError for a path that could not be kept in the state, or sent to who asks for it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} {str(path)!r} is not UTF-8: {way_out}") from None


def read_environment(path: str) -> str:
    """The text of an environment file; none of a missing one that is written `-/path`. Raises UsageError."""
    file = Path(path.removeprefix("-"))
    if path.startswith("-") and not file.exists():
        return ""
    return read_config_text(file, "environment file")
