"""What the processes of a unit are started in: as whom, where, with which variables and limits. No decisions."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from parsupd.core.addresses import SOCKET
from parsupd.core.fleet import Fleet
from parsupd.core.unitfile import parse_environment
from parsupd.core.units import InstanceName, UnitSpec
from parsupd.outputs import Outputs
from parsupd.shell import accounts
from parsupd.shell.config_files import read_environment
from parsupd.shell.leftovers import TOKEN
from parsupd.shell.preparing import Step, steps_for
from parsupd.variables import failure_variables, program_path


class Surroundings(NamedTuple):
    """Of the processes of one run."""

    spec: UnitSpec
    """With the directory that "~" means."""
    uid: int | None
    """The user that they become; None: the one that parsupd runs as."""
    variables: dict[str, str]
    """Besides those that parsupd itself has."""
    steps: list[Step]
    """What is done in a process before its program begins."""


class Finder:
    """Finds them anew for each process: accounts and files of variables may have changed."""

    def __init__(self, fleet: Fleet, outputs: Outputs, runtime_dir: Path, token: str) -> None:
        self._fleet = fleet
        self._outputs = outputs
        self._ours = program_path(os.environ)
        self._told = {"PARSUP_SOCKET": str(runtime_dir / SOCKET), TOKEN: token}

    def __call__(self, instance: InstanceName, generation: int) -> Surroundings:
        """Those of an instance's generation. Raises ConfigurationError, AccountError and OSError."""
        spec = self._fleet.spec(instance)
        identity = accounts.identity(spec)
        folder = accounts.at_home(spec.working_directory, identity)
        there = spec if folder == spec.working_directory else replace(spec, working_directory=folder)
        variables = {**self._ours, **({} if identity is None else identity.environment)}
        for path in spec.environment_file:
            variables |= parse_environment(path.removeprefix("-"), read_environment(path))
        variables |= {
            **spec.environment,
            **self._outputs.variables(spec, instance),
            "PARSUP_UNIT": instance.unit,
            "PARSUP_INSTANCE": str(instance.number),
            "PARSUP_GENERATION": str(generation),
            **self._told,
            **failure_variables(self._fleet.state(instance)[0].failure),
        }
        return Surroundings(there, None if identity is None else identity.uid, variables, steps_for(there, identity))
