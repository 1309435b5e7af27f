"""Which files are installed where, and what is done about what is there already."""

import pytest

from parsupd.core.installation import (
    BOTH,
    CONFIGURATION,
    SYSTEM,
    USER,
    Action,
    File,
    Target,
    files,
    own_directories,
    sources,
    to_install,
    to_uninstall,
)

FOR_ALL = Target(user=False, prefix="/usr/local", config="/etc", commands="/opt/parsupd/bin")
FOR_ONE = Target(user=True, prefix="/home/ann/.local", config="/home/ann/.config", commands="/home/ann/venv/bin")
UNIT = File("parsupd.socket", "/lib/parsupd.socket", "new")
OPERATORS = File(CONFIGURATION, "/etc/parsupd/parsupd.toml", "new")


def texts(target: Target, service: str = "") -> dict[str, str]:
    return {source: service if source.endswith(".service") else source for source in sources(target)}


def service(target: Target, text: str) -> str:
    (found,) = (file.text for file in files(target, texts(target, text)) if file.source.endswith(".service"))
    return found


def test_the_system_and_a_user_get_their_own_units() -> None:
    """A user's installation holds nothing of the system's, and stays within the two directories."""
    assert set(sources(FOR_ALL)) == {*SYSTEM, *BOTH}
    assert set(sources(FOR_ONE)) == {*USER, *BOTH}
    paths = {file.source: file.path for file in files(FOR_ALL, texts(FOR_ALL))}
    assert paths["parsupd.service"] == "/usr/local/lib/systemd/system/parsupd.service"
    assert paths[CONFIGURATION] == "/etc/parsupd/parsupd.toml"
    for file in files(FOR_ONE, texts(FOR_ONE)):
        assert file.path.startswith(("/home/ann/.local/", "/home/ann/.config/parsupd/")), file.path


def test_services_name_the_commands_by_their_real_path() -> None:
    """Every command of a service is that of the installation, wherever it stands in a line."""
    text = "ExecStart=/usr/bin/parsupd --config %E/x\nExecReload=/usr/bin/parsupctl reload\n# of /usr/bin/parsupd\n"
    text += "ExecStopPost=/bin/sh -c 'test x || exec /usr/bin/parsupd sweep'\n"
    assert service(FOR_ALL, text) == (
        "ExecStart=/opt/parsupd/bin/parsupd --config %E/x\n"
        "ExecReload=/opt/parsupd/bin/parsupctl reload\n"
        "# of /usr/bin/parsupd\n"
        "ExecStopPost=/bin/sh -c 'test x || exec /opt/parsupd/bin/parsupd sweep'\n"
    )


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ("/srv/my apps/bin", 'ExecStart="/srv/my apps/bin/parsupd"'),
        ("/srv/50%/bin/", "ExecStart=/srv/50%%/bin/parsupd"),
        ("/srv/c++/\\1", None),
        ("/srv/a\nb", None),
        ('/srv/"', None),
        ("/srv/$HOME", None),
    ],
)
def test_paths_are_quoted_for_systemd_or_refused(commands: str, expected: str | None) -> None:
    """What systemd would read differently is quoted; what cannot be quoted surely is refused with the character."""
    target = Target(user=False, prefix="/usr", config="/etc", commands=commands)
    if expected is None:
        with pytest.raises(ValueError, match="cannot stand in the path"):
            service(target, "ExecStart=/usr/bin/parsupd\n")
    else:
        assert service(target, "ExecStart=/usr/bin/parsupd\n") == f"{expected}\n"


@pytest.mark.parametrize(
    ("file", "there", "install", "uninstall"),
    [
        (UNIT, None, Action.CREATE, None),
        (UNIT, "new", Action.NOTHING, Action.REMOVE),
        (UNIT, "old", Action.UPDATE, Action.REMOVE),
        (OPERATORS, None, Action.CREATE, None),
        (OPERATORS, "new", Action.NOTHING, Action.REMOVE),
        (OPERATORS, "changed", Action.KEEP, Action.KEEP),
        (OPERATORS, "", Action.KEEP, Action.KEEP),
    ],
)
def test_what_is_done_about_a_file(file: File, there: str | None, install: Action, uninstall: Action | None) -> None:
    """Files of parsupd follow the version that is installed; a configuration that was changed is never touched."""
    found = {file.path: there}
    assert [step.action for step in to_install((file,), found)] == [install]
    assert [step.action for step in to_uninstall((file,), found)] == ([uninstall] if uninstall else [])


def test_only_directories_of_its_own_are_removed_deepest_first() -> None:
    """A directory that others use as well is not parsupd's to remove, even when it is empty."""
    own = own_directories(files(FOR_ALL, texts(FOR_ALL)))
    assert own == (
        "/usr/local/share/doc/parsupd/examples",
        "/usr/local/share/doc/parsupd",
        "/etc/parsupd/units.d",
        "/etc/parsupd",
    )
