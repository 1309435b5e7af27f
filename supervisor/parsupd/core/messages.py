"""MESSAGE_IDs of the events that the catalog (deploy/parsupd.catalog) describes: one table. Made with systemd-id128.

An id is for ever: whoever filters by it must find the same event in later versions.
"""

from parsupd.core.units import SubState
from workerlib.core import messages as of_workerlib

MESSAGE_IDS = {
    **of_workerlib.MESSAGE_IDS,
    "started": "1cbbd9aa763e4fbd8c8b4a9a5b5282a4",
    "shutting_down": "5845afd65bc64a25a7ff71e09c89b5ea",
    "stopped": "d40c63c34d5b4911b70bfdaf71125cda",
    "handed_over": "cedfbfed58884fb4a65dc758e6ba34c7",
    "unit_adopted": "830f8c46c6cd4b1794f61c54122a096a",
    "unit_starting": "000d6925ef204972b082c2784426ad5c",
    "unit_ready": "b67eee2b33ab41d4bd6146b70b210eec",
    "unit_unready": "9a09bb9f0a364539a63bf8c7354744d3",
    "unit_ended": "5aaf6c38223645068ef40b199d8a3945",
    "unit_failed": "7c76388fb20a4251be8a79975e57c15e",
    "unit_unkillable": "97a71ffcf72f453093d36370414a9624",
    "unit_output_lost": "42bead44e7834fc4b115eebf5897bb95",
    "unit_output_elsewhere": "1beb1fed78094e51b2a3eb460fcef9c6",
    "spawn_crashed": "4718e8c412564ab488171d4c385b3c62",
    "restart_storm": "e1e7306097bf4ac6aae6eea8471319cc",
    "group_failed": "f0c555e50d6a4e1f8c191f181f70c410",
}

_CHANGES = {
    SubState.STARTING.value: "unit_starting",
    SubState.RUNNING.value: "unit_ready",
    SubState.UNREADY.value: "unit_unready",
    SubState.FAILED.value: "unit_failed",
}


def message_id(event: str, new_state: str) -> str | None:
    """The id of a record of the daemon; a unit's change is told apart by the state that it came to."""
    return MESSAGE_IDS.get(_CHANGES.get(new_state, "") if event == "unit_changed" else event)
