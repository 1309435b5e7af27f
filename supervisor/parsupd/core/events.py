"""Facts and orders that are given to the cores. Layer 0: values only.

What the executor reports about one generation of an instance comes from three sources:

* the spawn and the worker's connection: `Spawned`, then for a worker `Ready` and perhaps `ReadinessLost`, or instead of
  `Ready` one `SpawnFailed`. Without `Spawned` (no process came to be), `SpawnFailed` is the last word.
* an earlier parsupd that was killed meanwhile: instead of all these, `SpawnInterrupted`.
* whoever watches the instance, between `Spawned` and `Exited`: any number of `Unhealthy`.
* the process, after `Spawned`: exactly one `Exited`, then exactly one `GroupEmpty`.

Inside a source the order is fixed; between the sources it is free (a killed worker may lose its connection before or
after its exit is seen), except that `Spawned` comes first. Each report is given once.
"""

from dataclasses import dataclass

from parsupd.core.units import Configuration, ExitCause, Failure, InstanceName, UnitSpec


@dataclass(frozen=True, slots=True)
class Report:
    """Something that happened to one generation of an instance; ignored when the generation is not the current one."""

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class Spawned(Report):
    """A process exists (for the types simple and oneshot: exec succeeded)."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready(Report):
    """The worker is initialised and serves at `uri`."""

    uri: str


@dataclass(frozen=True, slots=True)
class SpawnFailed(Report):
    """The spawn did not lead to a running unit, or was cancelled; `lines` are the last lines of its stderr."""

    cause: ExitCause
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpawnInterrupted(Report):
    """An earlier parsupd ended while it was starting this generation, of which nothing is left."""


@dataclass(frozen=True, slots=True)
class ReadinessLost(Report):
    """A worker that was ready has lost its registration, e.g. its connection; its process may still live."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unhealthy(Report):
    """Whoever watches the instance (a liveness probe, a limit) has found that it must be ended; `reason` says which."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited(Report):
    """The main process has ended and was reaped."""

    cause: ExitCause


@dataclass(frozen=True, slots=True)
class GroupEmpty(Report):
    """The main process was reaped and nobody is left in its process group."""


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The instant that `next_deadline` named has come; give it after all reports that are at hand."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the fleet tells one unit machine; `reason` is kept and shown."""

    reason: str


@dataclass(frozen=True, slots=True)
class StartOrder(Order):
    """Be up; forgets backoff and start limit, as `systemctl reset-failed` and `start` do."""

    failure: Failure | None = None  # what it is started for


@dataclass(frozen=True, slots=True)
class StopOrder(Order):
    """Be down."""


@dataclass(frozen=True, slots=True)
class RestartOrder(Order):
    """Be down, then up; forgets backoff and start limit, unless it is for the sake of others (`fresh` is false)."""

    fresh: bool = True


@dataclass(frozen=True, slots=True)
class DependencyFailed(Order):
    """A required unit cannot become ready: stop, and be failed."""


@dataclass(frozen=True, slots=True)
class DependenciesReady(Order):
    """All that it waits for is there."""


@dataclass(frozen=True, slots=True)
class Redescribed:
    """The unit's description has changed: at once as far as keys are live, else from the next run on."""

    spec: UnitSpec


@dataclass(frozen=True, slots=True)
class Start:
    """Command: start a unit (or one instance, `unit@N`) and what it requires and wants."""

    name: str
    reason: str = "start requested"


@dataclass(frozen=True, slots=True)
class Stop:
    """Command: stop a unit and the units that require it, those first; or one instance of several alone."""

    name: str
    reason: str = "stop requested"


@dataclass(frozen=True, slots=True)
class Restart:
    """Command: restart a unit and the running units that require it; or one instance of several alone."""

    name: str
    reason: str = "restart requested"


@dataclass(frozen=True, slots=True)
class StartDefault:
    """Command: start all units that are enabled."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Command: stop everything in reverse order; `AllDown` follows when nothing is left."""

    reason: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Command: do what `Fleet.plan` says of this configuration, and nothing else."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Scale:
    """Command: run so many instances of a unit, as if its file said so, until a Reconfigure says otherwise."""

    name: str
    instances: int


UnitEvent = (
    Spawned
    | Ready
    | SpawnFailed
    | SpawnInterrupted
    | ReadinessLost
    | Unhealthy
    | Exited
    | GroupEmpty
    | DeadlineReached
    | StartOrder
    | StopOrder
    | RestartOrder
    | DependencyFailed
    | DependenciesReady
    | Redescribed
)
Command = Start | Stop | Restart | StartDefault | Reconfigure | Scale | ShutdownRequested
FleetEvent = (
    Spawned
    | Ready
    | SpawnFailed
    | SpawnInterrupted
    | ReadinessLost
    | Unhealthy
    | Exited
    | GroupEmpty
    | DeadlineReached
    | Command
)
