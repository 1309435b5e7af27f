"""Facts and orders that are given to the cores. Layer 0: values only.

What the executor reports about one generation of an instance comes from several sources:

* the spawn and the worker's connection: `Spawned`, then for a worker `Ready` and perhaps `ReadinessLost`, or instead of
  `Ready` one `SpawnFailed`. Without `Spawned` (no process came to be), `SpawnFailed` is the last word.
* for type forking, the program that was spawned: `Launched` when it has ended. The daemon that it left behind is named
  by `MainChanged`, once it was asked for by FindMain; when there is none, GroupEmpty comes instead.
* what it says on its NOTIFY_SOCKET: any number of `Ready`, `ReloadBegun`, `StopBegun`, `Extended`, `WatchdogFired`, and
  `MainChanged`; `LastSign` only in answer to CheckLife.
* the command of a RunHook, which may come before a Spawn and after GroupEmpty: exactly one `HookEnded`.
* an earlier parsupd that was killed meanwhile: instead of all these, `SpawnInterrupted`; or `EndInterrupted`, when it
  had begun to end the run.
* whoever watches the instance, between `Spawned` and `Exited`: any number of `Unhealthy`; and of `FoundReady` and
  `FoundUnready`, once its type says that it is started.
* the main process, after `Spawned`: one `Exited`, unless another one became main before that, then exactly one
  `GroupEmpty`. A daemon of type forking may be asked for once more after its `Exited`: then there is another one.

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
    """A process exists (for all types but worker: exec succeeded)."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready(Report):
    """It is ready; a worker serves at `uri`. After ReloadBegun: it has reloaded."""

    uri: str = ""


@dataclass(frozen=True, slots=True)
class SpawnFailed(Report):
    """The spawn did not lead to a running unit, or was cancelled; `lines` are the last lines of its stderr."""

    cause: ExitCause
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpawnInterrupted(Report):
    """An earlier parsupd ended while it was starting this generation, of which nothing is left."""


@dataclass(frozen=True, slots=True)
class EndInterrupted(Report):
    """An earlier parsupd ended while it was ending this generation; whether its signals were sent, nobody knows."""


@dataclass(frozen=True, slots=True)
class ReadinessLost(Report):
    """A worker that was ready has lost its registration, e.g. its connection; its process may still live."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unhealthy(Report):
    """Whoever watches the instance (a liveness probe, a limit) has found that it must be ended; `reason` says which."""

    reason: str


@dataclass(frozen=True, slots=True)
class FoundReady(Report):
    """Its readiness probe passes, for the first time or again; `reason` says which."""

    reason: str


@dataclass(frozen=True, slots=True)
class FoundUnready(Report):
    """Its readiness probe fails, or does not pass yet; given anew when the answer in `reason` is another one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited(Report):
    """The main process has ended and was reaped; `stack` is what it left of the stacks of its threads, if it did."""

    cause: ExitCause
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupEmpty(Report):
    """The main process was reaped and nobody is left in its process group, or of those that have left that.

    `oom_killed`: the kernel has killed some of them for want of memory.
    """

    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class Launched(Report):
    """The program of a unit of type forking has ended; what it has left behind goes on."""

    cause: ExitCause


@dataclass(frozen=True, slots=True)
class MainChanged(Report):
    """Another process of the instance is its main one from now on."""

    pid: int


@dataclass(frozen=True, slots=True)
class ReloadBegun(Report):
    """It says that it reads its configuration again; `Ready` follows."""


@dataclass(frozen=True, slots=True)
class StopBegun(Report):
    """It says that it is about to end by itself."""


@dataclass(frozen=True, slots=True)
class Extended(Report):
    """It asks for `by_s` seconds from now on for what it does: starting, reloading, running or stopping."""

    by_s: float


@dataclass(frozen=True, slots=True)
class LastSign(Report):
    """The answer to CheckLife: when its last sign of life came."""

    at: float


@dataclass(frozen=True, slots=True)
class WatchdogFired(Report):
    """It says itself that it has to be ended, as if its watchdog had expired."""

    reason: str


@dataclass(frozen=True, slots=True)
class HookEnded(Report):
    """The command of a RunHook, and all that it started, has ended; SPAWN_FAILED when it could not be started."""

    cause: ExitCause


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
class ReloadOrder(Order):
    """Run the commands of exec_reload, if it runs and is not reloading already."""


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
class ReloadUnit:
    """Command: have a unit's running instances read their own configuration again, by exec_reload."""

    name: str
    reason: str = "reload requested"


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


UnitReport = (
    Spawned
    | Ready
    | SpawnFailed
    | SpawnInterrupted
    | EndInterrupted
    | ReadinessLost
    | Unhealthy
    | FoundReady
    | FoundUnready
    | Exited
    | GroupEmpty
    | Launched
    | MainChanged
    | ReloadBegun
    | StopBegun
    | Extended
    | LastSign
    | WatchdogFired
    | HookEnded
    | DeadlineReached
)
UnitEvent = (
    UnitReport
    | StartOrder
    | StopOrder
    | RestartOrder
    | ReloadOrder
    | DependencyFailed
    | DependenciesReady
    | Redescribed
)
Command = Start | Stop | Restart | ReloadUnit | StartDefault | Reconfigure | Scale | ShutdownRequested
FleetEvent = UnitReport | Command
