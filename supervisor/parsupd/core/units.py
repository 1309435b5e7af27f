"""The words of the supervisor: what a unit is, which states it has, how a process ended. Layer 0: values only."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from parsupd.core.attributes import Attributes
from parsupd.core.cron import Cron
from parsupd.core.log_settings import ALL_FILES, LogSettings
from parsupd.core.probe_keys import Probe
from parsupd.core.templates import Template

KEPT = LogSettings()
"""How output is kept in files by default."""

# Signal numbers of Linux on x86, ARM and RISC-V (signal(7)); a test compares them with the `signal` module.
SIGNALS = {
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
    "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
    "SIGSTKFLT": 16, "SIGCHLD": 17, "SIGCONT": 18, "SIGSTOP": 19, "SIGTSTP": 20, "SIGTTIN": 21, "SIGTTOU": 22,
    "SIGURG": 23, "SIGXCPU": 24, "SIGXFSZ": 25, "SIGVTALRM": 26, "SIGPROF": 27, "SIGWINCH": 28, "SIGIO": 29,
    "SIGPWR": 30, "SIGSYS": 31,
}  # fmt: skip
SIGNAL_NAMES = {number: name for name, number in SIGNALS.items()}
SIGKILL = SIGNALS["SIGKILL"]
SIGTERM = SIGNALS["SIGTERM"]
SIGABRT = SIGNALS["SIGABRT"]


class UnitType(enum.Enum):
    """How a unit is started, and when it counts as ready."""

    WORKER = "worker"  # a workerlib worker: ready when it says so
    SIMPLE = "simple"  # a program: ready when exec succeeded
    NOTIFY = "notify"  # a program that says on NOTIFY_SOCKET when it is ready
    FORKING = "forking"  # a program that ends when the daemon that it has left behind is ready
    ONESHOT = "oneshot"  # a program that does its work and ends: ready when it has exited with 0


class RestartPolicy(enum.Enum):
    """When a unit that ended by itself is started again, as Restart= in systemd.service(5)."""

    NO = "no"
    ON_SUCCESS = "on-success"
    ON_FAILURE = "on-failure"
    ON_ABNORMAL = "on-abnormal"
    ON_WATCHDOG = "on-watchdog"
    ALWAYS = "always"


class StartLimitAction(enum.Enum):
    """What follows when a unit has been started too often."""

    FAIL = "fail"
    SLOW_RETRY = "slow-retry"  # tried again when the window is over, and not before the longest delay
    EXIT = "exit"  # everything stops, and parsupd exits with 1


class NotifyAccess(enum.Enum):
    """Whose messages on a unit's NOTIFY_SOCKET count."""

    MAIN = "main"
    ALL = "all"  # any process of the unit


class KillMode(enum.Enum):
    """Who gets the signals of a stop."""

    GROUP = "group"  # all processes of the unit
    MIXED = "mixed"  # the main process, and all others SIGKILL when it has ended
    PROCESS = "process"  # the main process alone; others are left to themselves


class HookStage(enum.Enum):
    """When a unit's own commands are run; the value is their key."""

    START_PRE = "exec_start_pre"
    START_POST = "exec_start_post"
    RELOAD = "exec_reload"
    STOP = "exec_stop"
    STOP_POST = "exec_stop_post"


class MaxRssAction(enum.Enum):
    """What becomes of a unit that takes more memory than max_rss."""

    RESTART = "restart"  # it is ended, and its restart policy decides
    STOP = "stop"
    LOG = "log"


class Overlap(enum.Enum):
    """What becomes of a run that its schedule asks for while the one before goes on."""

    SKIP = "skip"
    QUEUE = "queue"
    KILL = "kill"


class Target(enum.Enum):
    """What is wanted of an instance; what is, is its SubState."""

    UP = "up"
    DOWN = "down"


class ActiveState(enum.Enum):
    """The few public states, as systemd names them."""

    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    FAILED = "failed"


class SubState(enum.Enum):
    """The states of the unit machine."""

    DEAD = "dead"  # not started, stopped by request, or ended cleanly
    WAITING = "waiting"  # to be started as soon as its dependencies are ready
    START_PRE = "start-pre"  # exec_start_pre runs
    STARTING = "starting"  # being spawned, or spawned and not ready; a oneshot that does its work
    START_PROBE = "start-probe"  # started, and its readiness probe has not passed yet
    START_POST = "start-post"  # exec_start_post runs
    RUNNING = "running"  # ready
    UNREADY = "unready"  # was ready, and goes on, but its readiness probe fails; it may be reloading
    RELOADING = "reloading"  # ready, and reading its configuration again: exec_reload runs, or it has said so
    EXITED = "exited"  # a oneshot that is done: it is `completed`, and stays so until it is stopped
    ABORTING = "aborting"  # the watchdog has expired: SIGABRT sent, so that it leaves a dump of its stacks
    EXEC_STOP = "exec-stop"  # exec_stop runs
    STOPPING = "stopping"  # stop signal sent (or spawn cancelled); waits until the process group is empty
    KILLING = "killing"  # SIGKILL sent; waits until the process group is empty
    UNKILLABLE = "unkillable"  # SIGKILL was of no use: waits until the process group is empty, however long that takes
    STOP_POST = "stop-post"  # nothing of it is left, and exec_stop_post runs
    BACKOFF = "backoff"  # will be started again at its deadline
    FAILED = "failed"  # ended, and the policy, the start limit or a dependency forbids another start


# THE table from fine to public states. EXITED is active as with systemd's RemainAfterExit=yes: what a oneshot brought
# about is there, so units that require it may run. UNREADY is activating: active is what one may be led to, and who
# waits for that waits on.
ACTIVE_STATE = {
    SubState.DEAD: ActiveState.INACTIVE,
    SubState.WAITING: ActiveState.ACTIVATING,
    SubState.START_PRE: ActiveState.ACTIVATING,
    SubState.STARTING: ActiveState.ACTIVATING,
    SubState.START_PROBE: ActiveState.ACTIVATING,
    SubState.START_POST: ActiveState.ACTIVATING,
    SubState.RUNNING: ActiveState.ACTIVE,
    SubState.UNREADY: ActiveState.ACTIVATING,
    SubState.RELOADING: ActiveState.ACTIVE,
    SubState.EXITED: ActiveState.ACTIVE,
    SubState.ABORTING: ActiveState.DEACTIVATING,
    SubState.EXEC_STOP: ActiveState.DEACTIVATING,
    SubState.STOPPING: ActiveState.DEACTIVATING,
    SubState.KILLING: ActiveState.DEACTIVATING,
    SubState.UNKILLABLE: ActiveState.DEACTIVATING,
    SubState.STOP_POST: ActiveState.DEACTIVATING,
    SubState.BACKOFF: ActiveState.ACTIVATING,
    SubState.FAILED: ActiveState.FAILED,
}


STARTS = frozenset({SubState.START_PRE, SubState.STARTING, SubState.START_PROBE, SubState.START_POST})
"""Of a run whose start has begun and is not over."""

AT_WORK = frozenset({SubState.RUNNING, SubState.UNREADY, SubState.RELOADING})
"""Of a run whose start is over and whose end has not begun, be it ready or not."""


class InstanceName(NamedTuple):
    """One copy of a unit; written `unit@N`, N counts from 1."""

    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.unit}@{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `unit@N`.

        Raises:
            ValueError: The text is not of that form.
        """
        unit, at, number = text.rpartition("@")
        if not (unit and at and number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(f"{text!r} is not the name of an instance: write unit@N, N from 1")
        return cls(unit, int(number))


class ExitKind(enum.Enum):
    """How an incarnation ended."""

    EXITED = "exited"  # by itself, with a code
    SIGNALED = "signaled"  # by a signal
    TIMED_OUT = "timed-out"  # stopped by us: it was not ready, or not down, in time
    WATCHDOG = "watchdog"  # stopped by us: it gave no sign of life
    UNHEALTHY = "unhealthy"  # stopped by us: a probe or a limit found it so
    SPAWN_FAILED = "spawn-failed"  # never became a working process
    UNKNOWN = "unknown"  # nobody could learn it


@dataclass(frozen=True, slots=True)
class ExitCause:
    """How an incarnation ended, with its number and what else is known; `str` completes the sentence "it ..."."""

    kind: ExitKind
    number: int = 0  # the exit code of EXITED, the signal of SIGNALED
    text: str = ""
    core_dumped: bool = field(default=False, compare=False)  # what follows from the signal does not hang on it

    @classmethod
    def exited(cls, code: int) -> Self:
        return cls(ExitKind.EXITED, code)

    @classmethod
    def signaled(cls, signal: int, *, core_dumped: bool = False) -> Self:
        return cls(ExitKind.SIGNALED, signal, core_dumped=core_dumped)

    @classmethod
    def timed_out(cls, text: str) -> Self:
        return cls(ExitKind.TIMED_OUT, text=text)

    @classmethod
    def watchdog(cls, text: str) -> Self:
        return cls(ExitKind.WATCHDOG, text=text)

    @classmethod
    def unhealthy(cls, text: str) -> Self:
        return cls(ExitKind.UNHEALTHY, text=text)

    @classmethod
    def spawn_failed(cls, text: str) -> Self:
        return cls(ExitKind.SPAWN_FAILED, text=text)

    @classmethod
    def unknown(cls, text: str = "") -> Self:
        return cls(ExitKind.UNKNOWN, text=text)

    @property
    def exit_status(self) -> int:
        """The status a program should exit with that stands for this one: its own code, 128 + signal, otherwise 1."""
        match self.kind:
            case ExitKind.EXITED:
                return self.number
            case ExitKind.SIGNALED:
                return 128 + self.number
            case _:
                return 1

    def __str__(self) -> str:
        detail = f": {self.text}" if self.text else ""
        match self.kind:
            case ExitKind.EXITED:
                return f"exited with {self.number}{detail}"
            case ExitKind.SIGNALED:
                core = " (core dumped)" if self.core_dumped else ""
                return f"was killed by {SIGNAL_NAMES.get(self.number, f'signal {self.number}')}{core}{detail}"
            case ExitKind.TIMED_OUT:
                return f"timed out{detail}"
            case ExitKind.WATCHDOG:
                return f"gave no sign of life{detail}"
            case ExitKind.UNHEALTHY:
                return f"was unhealthy{detail}"
            case ExitKind.SPAWN_FAILED:
                return f"could not be started{detail}"
            case ExitKind.UNKNOWN:
                return f"ended in an unknown way{detail}"


class OutputKind(enum.Enum):
    """Where a standard stream of a unit goes."""

    JOURNAL = "journal"
    FILE = "file"
    NULL = "null"
    INHERIT = "inherit"
    APPEND = "append"


@dataclass(frozen=True, slots=True)
class Output:
    """Where a standard stream of a unit goes; `path` only with APPEND."""

    kind: OutputKind
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `journal`, `file`, `null`, `inherit` or `append:PATH`.

        Raises:
            ValueError: The text is none of these.
        """
        word, colon, path = text.partition(":")
        if (word == "append") != bool(colon and path):
            raise ValueError("append needs a path: append:/path")
        return cls(OutputKind(word), path)


class ListenAddress(NamedTuple):
    """Where a unit's socket listens: a Unix socket's absolute path, or an IP address and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


class Dependency(NamedTuple):
    """One entry of requires, binds_to, wants or after; `completed` when written `unit:completed`.

    For a oneshot, ready and completed are the same; the suffix says so in the file and is refused on other types.
    """

    unit: str
    completed: bool = False


class Hook(NamedTuple):
    """A command that a unit's file wants run at some stage."""

    exec: tuple[str, ...]
    timeout_s: float | None = None  # None: that of the stage
    ignore_failure: bool = False


ExitStatus = int | str
"""An exit code, or the name of a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec(Attributes):
    """One unit as its file describes it, checked. Durations in seconds; `inf` where a timeout may be switched off."""

    name: str
    source: str = ""  # path of the file that holds it
    transient: bool = False  # no file holds it: it was made by a command, and lasts until it is stopped
    type: UnitType = UnitType.SIMPLE
    description: str = ""
    worker: str = ""  # module:Class, of type worker
    python: str = ""  # interpreter of a worker; empty means that of parsupd
    exec: tuple[str, ...] = ()  # program and arguments, of the other types
    init: Mapping[str, Any] | tuple[Any, ...] = ()  # init arguments of a worker: by keyword or by position
    instances: int = 1
    enabled: bool = True  # part of the default target
    exit_with: bool = False  # when it ends for good, everything stops and parsupd exits with its status
    requires: tuple[Dependency, ...] = ()
    wants: tuple[Dependency, ...] = ()
    after: tuple[Dependency, ...] = ()
    binds_to: tuple[Dependency, ...] = ()
    part_of: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()  # units that are started when an instance has failed
    restart: RestartPolicy = RestartPolicy.ON_FAILURE
    restart_s: float = 0.1
    restart_steps: int = 5
    restart_max_delay_s: float = 30.0
    restart_reset_after_s: float = 60.0
    start_limit_burst: int = 5
    start_limit_interval_s: float = 10.0
    start_limit_action: StartLimitAction = StartLimitAction.FAIL
    success_exit_status: tuple[ExitStatus, ...] = ()  # besides 0 and the clean signals
    restart_prevent_exit_status: tuple[ExitStatus, ...] = ()
    restart_force_exit_status: tuple[ExitStatus, ...] = ()
    remain_after_exit: bool = True  # of a oneshot
    runtime_max_s: float = math.inf
    runtime_max_spread_s: float = 0.0
    watchdog_s: float = math.inf  # within which a sign of life must come
    notify_access: NotifyAccess = NotifyAccess.MAIN
    pid_file: str = ""  # of type forking; empty: its main process is the one that is left
    exec_start_pre: tuple[Hook, ...] = ()
    exec_start_post: tuple[Hook, ...] = ()
    exec_reload: tuple[Hook, ...] = ()
    exec_stop: tuple[Hook, ...] = ()
    exec_stop_post: tuple[Hook, ...] = ()
    timeout_start_s: float = 30.0
    timeout_stop_s: float = 10.0
    kill_signal: int = SIGTERM
    kill_mode: KillMode = KillMode.GROUP
    send_sigkill: bool = True
    stdout: Output = Output(OutputKind.JOURNAL)
    stderr: Output = Output(OutputKind.JOURNAL)
    log_format: str = KEPT.form
    log_rotate_size: int = KEPT.rotate_size
    log_rotate_s: float = KEPT.rotate_age_s
    log_total_size: int = KEPT.total_size
    log_compress: bool = KEPT.compress
    log_full_policy: str = KEPT.full_policy
    log_block_s: float = KEPT.block_s
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_file: tuple[str, ...] = ()
    sockets: tuple[ListenAddress, ...] = ()  # opened once, and passed to each process of all instances
    working_directory: str = ""  # empty: the executor's choice
    umask: int | None = None  # None: that of parsupd
    readiness: Probe | None = None  # it is ready while this passes
    liveness: Probe | None = None  # it is ended when this fails
    max_rss: int = 0  # bytes that its process group may take; 0: any number
    max_rss_action: MaxRssAction = MaxRssAction.RESTART
    schedule: Cron | None = None  # it is started at these times, or
    schedule_every_s: float = 0.0  # so often
    schedule_jitter_s: float = 0.0
    schedule_overlap: Overlap = Overlap.SKIP

    @property
    def is_scheduled(self) -> bool:
        """Whether its schedule starts it."""
        return self.schedule is not None or self.schedule_every_s > 0

    @property
    def in_default_target(self) -> bool:
        """Whether it is started with parsupd."""
        return self.enabled and not self.is_scheduled

    def hooks(self, stage: HookStage) -> tuple[Hook, ...]:
        """The commands of a stage."""
        found: tuple[Hook, ...] = getattr(self, stage.value)
        return found

    @property
    def has_teardown(self) -> bool:
        """Whether a oneshot that is done has something to be undone."""
        return bool(self.exec_stop or self.exec_stop_post)

    @property
    def listens_for_notices(self) -> bool:
        """Whether its processes are given a NOTIFY_SOCKET."""
        return self.type is UnitType.NOTIFY or self.watchdog_s != math.inf

    @property
    def order(self) -> tuple[str, ...]:
        """Names of all units that are started before this one and stopped after it, each once."""
        named = (edge.unit for edge in (*self.requires, *self.binds_to, *self.wants, *self.after))
        return tuple(dict.fromkeys((*named, *self.part_of)))

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the units that are started with this one, each once."""
        return tuple(dict.fromkeys(edge.unit for edge in (*self.requires, *self.binds_to, *self.wants)))

    @property
    def log_settings(self) -> LogSettings:
        """How output is kept that goes to files."""
        return LogSettings(
            self.log_format,
            self.log_rotate_size,
            self.log_rotate_s,
            self.log_total_size,
            self.log_compress,
            self.log_full_policy,
            self.log_block_s,
        )

    @property
    def instance_names(self) -> tuple[InstanceName, ...]:
        return tuple(InstanceName(self.name, number + 1) for number in range(self.instances))


class GroupStrategy(enum.Enum):
    """Which units of a group are restarted with one that is, as in Erlang/OTP."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"  # those that come after it


class Escalation(enum.Enum):
    """What happens when a group had too many restarts."""

    FAIL = "fail"  # all its units are stopped and have failed
    EXIT = "exit"  # everything is stopped and parsupd exits with 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """Units that are started in this order, stopped in reverse, and restarted together as the strategy says."""

    name: str
    source: str = ""  # path of the file that holds it
    units: tuple[str, ...] = ()
    strategy: GroupStrategy = GroupStrategy.ONE_FOR_ONE
    intensity: int = 5  # restarts within the period; one more is too many
    period_s: float = 10.0
    escalation: Escalation = Escalation.FAIL


class LogFormat(enum.Enum):
    """Where and how parsupd logs; AUTO is the executor's choice."""

    AUTO = "auto"
    JOURNAL = "journal"
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """The `[parsupd]` table of the main file; paths are resolved against it, empty means not set."""

    runtime_dir: str = ""
    state_dir: str = ""
    lease_s: float = 120.0  # how long workers go on without a parsupd before they end
    log: LogFormat = LogFormat.AUTO
    all_logs_size: int = ALL_FILES  # bytes of the log files of all units
    include: tuple[str, ...] = ()  # globs; the shell expands them
    restart_storm_burst: int = 500  # restarts of all units together
    restart_storm_interval_s: float = 10.0  # within this time; more have to wait


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the files say: settings of the daemon, and units, groups and templates by name, in order."""

    daemon: DaemonSettings
    units: Mapping[str, UnitSpec]
    groups: Mapping[str, GroupSpec] = field(default_factory=dict)
    templates: Mapping[str, Template] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an instance was started for: another one has failed, and names it in `on_failure`."""

    unit: str  # the name of the instance
    reason: str
    cause: str = ""  # how its last run ended; empty when it never ran
    exit_status: int = 1


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """Whether an ended unit is started again, and why; `reason` reads on after "restarted because" or "not ...".

    Attributes:
        restart: Whether another start follows.
        reason: Part of a sentence, e.g. "restart=on-failure and it exited with 1".
    """

    restart: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of an instance that has ended, as `why` shows it. Instants are of the monotonic clock."""

    generation: int
    pid: int | None  # None when no process came to be
    started_at: float
    ready_at: float | None  # None when it was never ready
    ended_at: float
    cause: ExitCause
    decision: RestartDecision
    next_attempt_at: float | None
    lines: tuple[str, ...] = ()  # last lines of stderr, when the start failed
    oom_killed: bool = False  # the kernel has killed something of it for want of memory
    stack: tuple[str, ...] = ()  # where its code was, when the watchdog has asked for that
