"""Makes manual pages, completions and workerlib's C part when a wheel is built, and puts the files of deploy/ into it
as parsupd/deploy.

The pages and completions go to deploy/generated, which git ignores, and where an editable installation reads them; the
C part of an editable installation goes beside its source. Without a C compiler or Python's headers there is none, and
the same functions in Python serve.

Manuals are Markdown in deploy/man; docutils turns them into roff. A line `{{README: Title}}` stands for that section of
README.md, so that nothing is written down twice. Completions are those of `parsupctl completion`.
"""

import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

from docutils.core import publish_string
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

COMMANDS = ("parsupctl", "parsupd")
SOURCES = {"build_hook.py", "debian.py", "man", "Containerfile"}
"""What is of use only where something is built."""
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


def generate(root: Path, version: str) -> None:
    """Writes everything below deploy/generated."""
    deploy = root / "deploy"
    readme = (root / "README.md").read_text(encoding="utf-8")
    texts = dict(
        manual(page.read_text(encoding="utf-8"), readme, version) for page in sorted((deploy / "man").glob("*.md"))
    )
    shells = runpy.run_path(str(root / "supervisor/parsupd/ctl/shells.py"))  # not imported: the package needs more
    script = shells["completion_script"]
    texts |= {f"{command}.{shell}": script(command, shell) for command in COMMANDS for shell in shells["SHELLS"]}
    generated = deploy / "generated"
    generated.mkdir(exist_ok=True)
    for name, text in texts.items():
        (generated / name).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


def compile_speedups(root: Path, folder: Path) -> Path:
    """Where the C part is, below `folder`; nothing is there when it cannot be compiled, of which setuptools warns."""
    sources = [str(source) for source in sorted((root / "workerlib").glob("*.c"))]
    extension = Extension("workerlib._speedups", sources, optional=True)
    command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(extension.name))


class CustomBuildHook(BuildHookInterface[Any]):
    """hatch looks for it by this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the files are collected. An editable wheel points to the checkout, and needs no copies."""
        root = Path(self.root)
        generate(root, self.metadata.version)
        self.compiled = tempfile.TemporaryDirectory(prefix="parsupd-build-")
        speedups = compile_speedups(root, Path(self.compiled.name))
        if version == "editable":
            beside_source = root / "workerlib" / speedups.name
            if speedups.exists():  # an older one is not written over: processes may be running it
                fresh = beside_source.with_name(f"_speedups.{os.getpid()}.so")
                fresh.write_bytes(speedups.read_bytes())
                fresh.replace(beside_source)
            else:
                beside_source.unlink(missing_ok=True)
            return
        for entry in (root / "deploy").iterdir():
            if entry.name not in SOURCES:
                build_data["force_include"][str(entry)] = f"parsupd/deploy/{entry.name}"
        if speedups.exists():
            build_data["force_include"][str(speedups)] = f"workerlib/{speedups.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatch's
        """After the wheel was written."""
        self.compiled.cleanup()
