"""What the cores want done. Layer 0: values only. The executor carries them out in the order given."""

from dataclasses import dataclass

from parsupd.core.units import ExitCause, HookStage, Incarnation, InstanceName, SubState


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start generation `generation` of the instance; answered by the reports that `events` describes."""

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class CancelSpawn:
    """Give up the spawn of this generation; nothing to do when it has ended.

    Answered by SpawnFailed, or by Spawned when a process came to be before the cancel.
    """

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class SignalGroup:
    """Send `signal` to all processes of this generation; nothing to do when GroupEmpty was reported.

    Processes that are found later to be of it get the same signal then.
    """

    instance: InstanceName
    generation: int
    signal: int


@dataclass(frozen=True, slots=True)
class SignalMain:
    """Send `signal` to the main process of this generation; nothing to do when it has ended."""

    instance: InstanceName
    generation: int
    signal: int


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run one command of the unit's own; answered by one HookEnded."""

    instance: InstanceName
    generation: int
    stage: HookStage
    index: int
    cause: ExitCause | None = None
    """How the main process ended, for what runs after that."""


@dataclass(frozen=True, slots=True)
class EndHook:
    """Send `signal` to the running command and all that it started; nothing to do when HookEnded was reported."""

    instance: InstanceName
    generation: int
    signal: int


@dataclass(frozen=True, slots=True)
class FindMain:
    """Name the daemon that a unit of type forking has left behind, by MainChanged, as soon as that can be known."""

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class CheckLife:
    """Tell, by LastSign, when the last sign of life came; all that are at hand count."""

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Enter the instance into the name server."""

    instance: InstanceName
    generation: int
    uri: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the instance out of the name server."""

    instance: InstanceName
    generation: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The instance went from one state to another: for the log, the status and those who wait."""

    instance: InstanceName
    generation: int
    old: SubState
    new: SubState
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """An incarnation has ended, or more became known of the last one (same generation): for the log and `why`."""

    instance: InstanceName
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Unkillable:
    """SIGKILL was sent long ago and the process group is not empty: say it loudly. No second copy is started."""

    instance: InstanceName
    generation: int
    pid: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Escalate:
    """The instance has failed in a way that its file wants to end everything: for the fleet."""

    instance: InstanceName
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The configuration does not have the instance any more, and it is down: nothing is known of it from here on."""

    instance: InstanceName


@dataclass(frozen=True, slots=True)
class Alarm:
    """The instance has failed, and `unit` is started for it, or is not for the reason given."""

    instance: InstanceName
    unit: str
    started: bool
    reason: str


@dataclass(frozen=True, slots=True)
class GroupFailed:
    """A group had too many restarts and is given up."""

    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class StormBegan:
    """Too many restarts of all units together: say it loudly. Further ones have to wait."""

    reason: str


@dataclass(frozen=True, slots=True)
class StormEnded:
    """Restarts do not wait any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Everything is being stopped; parsupd will exit with `exit_code`."""

    exit_code: int
    reason: str


@dataclass(frozen=True, slots=True)
class AllDown:
    """After Shutdown: nothing runs any more. Given once."""

    exit_code: int


UnitEffect = (
    Spawn
    | CancelSpawn
    | SignalGroup
    | SignalMain
    | RunHook
    | EndHook
    | FindMain
    | CheckLife
    | Publish
    | Withdraw
    | Changed
    | Note
    | Unkillable
    | Escalate
)
Told = Changed | Note | Unkillable | Forgotten | Alarm | GroupFailed | StormBegan | StormEnded | Shutdown
"""What is done by making it known."""
Effect = UnitEffect | Told | AllDown
