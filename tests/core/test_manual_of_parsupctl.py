"""The manual of parsupctl says what its parser takes."""

import re
from pathlib import Path

import click
import pytest

from parsupd.ctl.main import cli

PAGE = (Path(__file__).parents[2] / "deploy" / "man" / "parsupctl.1.md").read_text()
TERM = re.compile(r"^((?:`[a-z]+`(?:, )?)+)(.*?\n: .*?)\n\n", re.MULTILINE | re.DOTALL)
TERMS = {name: rest for names, rest in TERM.findall(PAGE) for name in re.findall(r"`([a-z]+)`", names)}

GENERAL = {"--help", "--timeout"}
"""What the page says once for all commands."""


def test_the_manual_has_all_commands_and_no_others() -> None:
    """Each command of the parser has its entry."""
    assert set(TERMS) == set(cli.commands)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_manual_has_all_options_of_a_command(name: str) -> None:
    """Each by one of its long names; and none that the parser does not take."""
    options = [
        {option for option in parameter.opts if option.startswith("--")}
        for parameter in cli.commands[name].params
        if isinstance(parameter, click.Option) and not GENERAL & {*parameter.opts}
    ]
    listed = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TERMS[name])) - GENERAL
    assert [option for option in options if not option & listed] == []
    assert listed <= {"--check"}.union(*options)


@pytest.mark.parametrize("name", sorted(set(cli.commands) - {"completion", "logs", "import", "call"}))
def test_every_command_that_asks_the_daemon_has_a_deadline(name: str) -> None:
    """`--timeout`, after its name."""
    assert any("--timeout" in parameter.opts for parameter in cli.commands[name].params)
