"""The message catalog describes exactly the events that have an id, and names only fields that their records have."""

import ast
import re

import pytest
from test_layers import MODULES, ROOT

from parsupd.core.messages import MESSAGE_IDS

ENTRIES = {
    text.partition("\n")[0]: text.partition("\n")[2]
    for text in re.split(r"^-- ", (ROOT / "deploy" / "parsupd.catalog").read_text(), flags=re.MULTILINE)[1:]
}

ALWAYS = {"PARSUP_EVENT", "PARSUP_INSTANCE", "PARSUP_UNIT", "PARSUP_WORKER_ID", "_PID"}

LOGGED_AS = dict.fromkeys(("unit_starting", "unit_ready", "unit_unready", "unit_failed"), "unit_changed")


def logged_fields(event: str) -> set[str]:
    """Names of the keyword arguments that the code gives to records of an event, wherever it logs one."""
    found: set[str] = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            if event in {part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)}:
                found |= {f"PARSUP_{keyword.arg.upper()}" for keyword in node.keywords if keyword.arg}
    return found


def test_every_id_is_described_and_nothing_else() -> None:
    """`journalctl -x` explains each catalogued event; ids are 128 bits, and no two events share one."""
    assert set(MESSAGE_IDS.values()) == ENTRIES.keys()
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ENTRIES)


@pytest.mark.parametrize("event", MESSAGE_IDS)
def test_an_explanation_is_in_journalds_form(event: str) -> None:
    """A subject, who defined it, a manual page of ours, and a text."""
    head, _, text = ENTRIES[MESSAGE_IDS[event]].partition("\n\n")
    keys = dict(line.split(": ", 1) for line in head.splitlines())
    assert keys["Defined-By"] == "parsupd"
    assert keys["Subject"]
    page = re.fullmatch(r"man:([\w.]+)\((\d)\)", keys["Documentation"])
    assert page is not None
    assert (ROOT / "deploy" / "man" / f"{page[1]}.{page[2]}.md").exists()
    assert text.strip()


@pytest.mark.parametrize("event", set(MESSAGE_IDS) - {"records_lost"})
def test_an_explanation_names_fields_that_the_record_has(event: str) -> None:
    """@FIELD@ in a text is a keyword of the call that logs the event."""
    used = set(re.findall(r"@([A-Z_]+)@", ENTRIES[MESSAGE_IDS[event]]))
    fields = logged_fields(LOGGED_AS.get(event, event))
    assert fields, f"{event} is logged nowhere"
    assert used <= fields | ALWAYS
