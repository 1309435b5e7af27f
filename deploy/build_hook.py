"""Makes manual pages and completions when a wheel is built, and puts the files of deploy/ into it as parsupd/deploy.

They go to deploy/generated, which git ignores, and where an editable installation reads them.

Manuals are Markdown in deploy/man; docutils turns them into roff. A line `{{README: Title}}` stands for that section of
README.md, so that nothing is written down twice. Completions are click's own.
"""

import re
from pathlib import Path
from typing import Any

from click import Command
from click.shell_completion import get_completion_class
from docutils.core import publish_string
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMANDS = ("parsupctl", "parsupd")
SOURCES = {"build_hook.py", "debian.py", "man", "Containerfile"}
"""What is of use only where something is built."""
SHELLS = ("bash", "zsh", "fish")
INCLUDE = re.compile(r"^\{\{README: (.+)\}\}$", re.MULTILINE)
TITLE = re.compile(r"\A# ([\w.-]+)\((\d)\) - (.+)\n")
HEADER = re.compile(r"^\.TH .*\n\.SH Name\n.*\n", re.MULTILINE)


def section(document: str, title: str) -> str:
    """The text below one heading of the README, as a manual can have it: no comments, no links."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section {title!r}")
    text = re.sub(r"<!--.*?-->\n?", "", found[1])
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)


def tables_as_lists(text: str) -> str:
    """A row of a table becomes a term and its explanation: the lines of a terminal are too short for tables."""

    def entry(match: re.Match[str]) -> str:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", match[1])]
        if set(cells[0]) <= {"-", ":"} and cells[0]:
            return ""
        term = ", ".join(cell for cell in cells[:-1] if cell)
        return f"{term}\n: {cells[-1] or 'as it says'}\n"

    headless = re.sub(r"^\|.*\|\n(?=\|[-:| ]+\|\n)", "", text, flags=re.MULTILINE)
    return re.sub(r"^\| ?(.*?) ?\|$", entry, headless, flags=re.MULTILINE)


def manual(source: str, readme: str, version: str) -> tuple[str, str]:
    """One page: its file name and its text in roff."""
    title = TITLE.match(source)
    if title is None:
        raise ValueError("a manual begins with `# name(section) - what it is`")
    name, number, subject = title.groups()
    body = INCLUDE.sub(lambda match: section(readme, match[1]), source[title.end() :])
    body = re.sub(r"^#(#+ )", r"\1", tables_as_lists(body), flags=re.MULTILINE)
    settings = {
        "_disable_config": True,  # of whoever builds
        "halt_level": 2,
        "myst_enable_extensions": ["deflist"],
        "myst_highlight_code_blocks": False,
        "myst_suppress_warnings": ["myst.header"],
        "output_encoding": "unicode",
    }
    roff = publish_string(body, parser="myst", writer="manpage", settings_overrides=settings)
    header = f'.TH "{name}" "{number}" "" "parsupd {version}"\n.SH NAME\n{name} \\- {subject}\n'
    return f"{name}.{number}", HEADER.sub(lambda _: header, roff, count=1)


def completion(command: str, shell: str) -> str:
    """The script of click, which asks the command itself what there is."""
    kind = get_completion_class(shell)
    assert kind is not None, "SHELLS are those that click knows"
    text = kind(Command(command), {}, command, f"_{command.upper()}_COMPLETE").source()
    # zsh loads the file at the first completion, and calls the function of the file's name from the second one on.
    return text.replace(f"_{command}_completion", f"_{command}") if shell == "zsh" else text


def generate(root: Path, version: str) -> None:
    """Writes everything below deploy/generated."""
    deploy = root / "deploy"
    readme = (root / "README.md").read_text(encoding="utf-8")
    texts = dict(
        manual(page.read_text(encoding="utf-8"), readme, version) for page in sorted((deploy / "man").glob("*.md"))
    )
    texts |= {f"{command}.{shell}": completion(command, shell) for command in COMMANDS for shell in SHELLS}
    generated = deploy / "generated"
    generated.mkdir(exist_ok=True)
    for name, text in texts.items():
        (generated / name).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


class CustomBuildHook(BuildHookInterface[Any]):
    """hatch looks for it by this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the files are collected. An editable wheel points to the checkout, and needs no copies."""
        root = Path(self.root)
        generate(root, self.metadata.version)
        if version != "editable":
            for entry in (root / "deploy").iterdir():
                if entry.name not in SOURCES:
                    build_data["force_include"][str(entry)] = f"parsupd/deploy/{entry.name}"
