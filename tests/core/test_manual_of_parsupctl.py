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


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_each_option_says_what_it_means(name: str) -> None:
    """In `--help`; and what stands for its value there is a word, not a type of the parser's library."""
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
            assert option.is_flag or option.metavar or isinstance(option.type, click.Choice), option.opts


@pytest.mark.parametrize("name", sorted(set(cli.commands) - {"completion", "call", "shutdown"}))
def test_every_command_that_has_a_result_gives_it_as_json(name: str) -> None:
    """`--json`; the results of `call` are JSON always."""
    assert any("--json" in parameter.opts for parameter in cli.commands[name].params)


@pytest.mark.parametrize("name", sorted(set(cli.commands) - {"completion", "import"}))
def test_every_command_that_asks_the_daemon_has_a_deadline(name: str) -> None:
    """`--timeout`, after its name."""
    assert any("--timeout" in parameter.opts for parameter in cli.commands[name].params)
