"""What is in the environment of a unit's processes besides what its file says. No decisions here."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from parsupd.core.units import Failure


def failure_variables(failure: Failure | None) -> dict[str, str]:
    """What a unit is told that was started because another one has failed."""
    if failure is None:
        return {}
    return {
        "PARSUP_FAILED_UNIT": failure.unit,
        "PARSUP_FAILED_REASON": failure.reason.replace("\0", ""),
        "PARSUP_FAILED_CAUSE": failure.cause.replace("\0", ""),
        "PARSUP_FAILED_EXIT_STATUS": str(failure.exit_status),
    }


def program_path(inherited: Mapping[str, str]) -> dict[str, str]:
    """PATH for units: a parsupd of a virtual environment puts the programs of that first, as its `activate` would.

    So `exec = ["python3", ...]` is the Python that parsupd and workerlib are installed for, as it is for workers.
    """
    if sys.prefix == sys.base_prefix:
        return {}
    own = str(Path(sys.prefix) / "bin")
    return {"PATH": os.pathsep.join([own, *os.get_exec_path(inherited)])}
