"""Which file of deploy/ goes where, and what is to be done about it: what `parsupd install` and `uninstall` decide."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

PACKAGED_COMMANDS = "/usr/bin"
"""Where the files of deploy/ say that the commands are."""

SYSTEM = {
    "parsupd.service": "{prefix}/lib/systemd/system/parsupd.service",
    "parsupd.socket": "{prefix}/lib/systemd/system/parsupd.socket",
    "parsupd.catalog": "{prefix}/lib/systemd/catalog/parsupd.catalog",
    "sysusers.d/parsupd.conf": "{prefix}/lib/sysusers.d/parsupd.conf",
    "tmpfiles.d/parsupd.conf": "{prefix}/lib/tmpfiles.d/parsupd.conf",
}
USER = {
    "user/parsupd.service": "{prefix}/share/systemd/user/parsupd.service",
    "user/parsupd.socket": "{prefix}/share/systemd/user/parsupd.socket",
}
BOTH = {
    "parsupd.toml": "{config}/parsupd/parsupd.toml",
    "examples/units-need-more.conf": "{prefix}/share/doc/parsupd/examples/units-need-more.conf",
    "generated/parsupctl.bash": "{prefix}/share/bash-completion/completions/parsupctl",
    "generated/parsupctl.fish": "{prefix}/share/fish/vendor_completions.d/parsupctl.fish",
    "generated/parsupctl.zsh": "{prefix}/share/zsh/site-functions/_parsupctl",
    "generated/parsupd.bash": "{prefix}/share/bash-completion/completions/parsupd",
    "generated/parsupd.fish": "{prefix}/share/fish/vendor_completions.d/parsupd.fish",
    "generated/parsupd.zsh": "{prefix}/share/zsh/site-functions/_parsupd",
    "generated/parsupctl.1": "{prefix}/share/man/man1/parsupctl.1",
    "generated/parsupd.toml.5": "{prefix}/share/man/man5/parsupd.toml.5",
    "generated/workerlib.7": "{prefix}/share/man/man7/workerlib.7",
    "generated/parsupd.8": "{prefix}/share/man/man8/parsupd.8",
}
CONFIGURATION = "parsupd.toml"
"""The file that belongs to the operator once it is there."""


class Action(Enum):
    """What is done about one file."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    KEEP = "keep"
    """It is the operator's, who changed it."""
    NOTHING = "unchanged"
    """It is as it should be."""


@dataclass(frozen=True)
class Target:
    """A place to install to."""

    user: bool
    prefix: str
    config: str
    """The directory above parsupd's own."""
    commands: str
    """The directory that holds parsupd and parsupctl."""


@dataclass(frozen=True)
class File:
    """One that is installed."""

    source: str
    path: str
    text: str


@dataclass(frozen=True)
class Step:
    """What is to be done about one file. `before` is what is there, None when nothing is."""

    action: Action
    file: File
    before: str | None


def sources(target: Target) -> tuple[str, ...]:
    """Names of the files in deploy/ that a target needs."""
    return (*(USER if target.user else SYSTEM), *BOTH)


def files(target: Target, texts: Mapping[str, str]) -> tuple[File, ...]:
    """The files of a target, given its sources' texts. Raises ValueError when the commands' path cannot be used."""
    paths = {**SYSTEM, **USER, **BOTH}
    return tuple(
        File(
            source,
            paths[source].format(prefix=target.prefix.rstrip("/"), config=target.config.rstrip("/")),
            _with_commands(texts[source], target.commands) if source.endswith(".service") else texts[source],
        )
        for source in sources(target)
    )


def _with_commands(text: str, commands: str) -> str:
    """Puts the real path of the commands into a unit file, in systemd's quoting."""
    if unusable := re.search(r"[^\w/.,+@=~% -]", commands):
        raise ValueError(f"{unusable[0]!r} cannot stand in the path of a service's command")

    def absolute(match: re.Match[str]) -> str:
        path = f"{commands.rstrip('/')}/{match[1]}".replace("%", "%%")
        return f'"{path}"' if " " in path else path

    return re.sub(rf"(?:(?<==)|(?<=exec )){PACKAGED_COMMANDS}/(\w+)", absolute, text)


def to_install(wanted: tuple[File, ...], there: Mapping[str, str | None]) -> tuple[Step, ...]:
    """One step for each file; `there` has what stands at each path."""

    def action(file: File) -> Action:
        match there[file.path]:
            case None:
                return Action.CREATE
            case text if text == file.text:
                return Action.NOTHING
            case _:
                return Action.KEEP if file.source == CONFIGURATION else Action.UPDATE

    return tuple(Step(action(file), file, there[file.path]) for file in wanted)


def to_uninstall(wanted: tuple[File, ...], there: Mapping[str, str | None]) -> tuple[Step, ...]:
    """One step for each file that is there."""
    return tuple(
        Step(
            Action.KEEP if file.source == CONFIGURATION and before != file.text else Action.REMOVE,
            file,
            before,
        )
        for file in wanted
        if (before := there[file.path]) is not None
    )


def own_directories(wanted: tuple[File, ...]) -> tuple[str, ...]:
    """Directories that are nobody else's, deepest first: uninstalling removes those that are empty."""
    found = {f"{file.path.rpartition('/')[0]}/units.d" for file in wanted if file.source == CONFIGURATION}
    for file in wanted:
        folder = file.path.rpartition("/")[0]
        while "/parsupd" in folder:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return tuple(sorted(found, key=lambda path: (-path.count("/"), path)))
