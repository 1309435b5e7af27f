"""The types notify, forking and oneshot, commands of units, the watchdog, kill modes: histories as data."""

import itertools
from typing import Any

import pytest
from unit_events import (
    CLEAN,
    CRASH,
    DEADLINE,
    DEPS,
    FAILED_DEP,
    KILLED,
    NAME,
    RELOAD,
    RESTART,
    START,
    STOP,
    TERMED,
    check,
    empty,
    exited,
    extended,
    failed,
    fired,
    hook,
    launched,
    main,
    play,
    ready,
    said,
    short,
    sign,
    spawned,
    spec,
    unhealthy,
)

from parsupd.core.events import EndInterrupted, Exited, Ready, Redescribed, ReloadBegun, SpawnInterrupted, StopBegun
from parsupd.core.unit_machine import next_deadline, step
from parsupd.core.unit_machine.running import chance
from parsupd.core.unit_state import UnitState
from parsupd.core.units import (
    ExitCause,
    Hook,
    KillMode,
    RestartPolicy,
    StartLimitAction,
    SubState,
    Target,
    UnitType,
)

WORKER, SIMPLE, ONESHOT = UnitType.WORKER, UnitType.SIMPLE, UnitType.ONESHOT
NOTIFY, FORKING = UnitType.NOTIFY, UnitType.FORKING
NO = {"restart": RestartPolicy.NO}
UP = [(START, 0, ["waiting"]), (DEPS, 0, ["spawn 1", "starting"])]
SIMPLE_UP = [*UP, (spawned(), 1, ["running"])]
NOTIFY_UP = [*UP, (spawned(), 1, []), (said(Ready), 2, ["running"])]
FORKING_UP = [*UP, (spawned(), 1, []), (launched(), 2, ["find main 1"]), (main(7), 2, ["running"])]
ONE, TWO = (Hook(("a",)),), (Hook(("a",)), Hook(("b",), timeout_s=3.0))
LENIENT = (Hook(("a",), ignore_failure=True), Hook(("b",)))
NOT_FOUND = ExitCause.spawn_failed("no such file")

# name: (type, changes of the spec, [(event, now, effects)])
HISTORIES: dict[str, tuple[UnitType, dict[str, Any], list[tuple[Any, float, list[str]]]]] = {
    "notify: it is ready when it says so, and its pid may change": (
        NOTIFY,
        {},
        [
            *UP,
            (spawned(), 1, []),
            (main(7), 2, []),
            (said(Ready), 3, ["running"]),
            (said(Ready), 3, []),
            (main(8), 4, []),
            (STOP, 5, ["signal 1 15", "stopping"]),
            (exited(TERMED), 5, []),
            (empty(), 5, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "notify: one that ends without a word has not been started": (
        NOTIFY,
        NO,
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: could not be started: it exited with 0 without having said READY=1", "failed"]),
        ],
    ),
    "notify: it asks for more time, once for less": (
        NOTIFY,
        NO,
        [
            *UP,
            (spawned(), 1, []),
            (extended(60), 20, []),
            (extended(1), 21, []),
            (DEADLINE, 80, ["cancel 1", "signal 1 15", "stopping"]),
            (extended(30), 81, []),
            (DEADLINE, 111, ["signal 1 9", "killing"]),
            (exited(KILLED), 111, []),
            (empty(), 111, ["note 1: timed out: not ready within 30 s", "failed"]),
        ],
    ),
    "notify: it reloads by itself": (
        NOTIFY,
        {},
        [
            *NOTIFY_UP,
            (said(ReloadBegun), 3, ["reloading"]),
            (said(ReloadBegun), 3, []),
            (RELOAD, 3, []),
            (said(Ready), 4, ["running"]),
            (said(ReloadBegun), 5, ["reloading"]),
            (DEADLINE, 35, ["running"]),
        ],
    ),
    "notify: its reload takes more time, and it crashes in it": (
        NOTIFY,
        NO,
        [
            *NOTIFY_UP,
            (said(ReloadBegun), 3, ["reloading"]),
            (extended(60), 30, []),
            (exited(CRASH), 80, ["signal 1 15", "stopping"]),
            (empty(), 80, ["note 1: exited with 1", "failed"]),
        ],
    ),
    "notify: it says that it ends, and is not disturbed": (
        NOTIFY,
        NO,
        [
            *NOTIFY_UP,
            (said(StopBegun), 3, ["stopping"]),
            (said(Ready), 3, []),
            (exited(CLEAN), 4, []),
            (empty(), 4, ["note 1: exited with 0", "dead"]),
        ],
    ),
    "notify: it says that it ends, and does not": (
        NOTIFY,
        NO,
        [
            *NOTIFY_UP,
            (said(StopBegun), 3, ["stopping"]),
            (DEADLINE, 13, ["signal 1 9", "killing"]),
            (exited(KILLED), 13, []),
            (empty(), 13, ["note 1: timed out: not down 10 s after SIGTERM", "failed"]),
        ],
    ),
    "forking: ready when its daemon is found, whose exit is its own": (
        FORKING,
        {},
        [
            *FORKING_UP,
            (exited(CRASH), 9, ["signal 1 15", "stopping"]),
            (empty(), 9, ["note 1: exited with 1", "backoff"]),
        ],
    ),
    "forking: what was taken for the daemon was a step on the way to it": (
        FORKING,
        {},
        [
            *FORKING_UP,
            (exited(CLEAN), 2.1, ["find main 1"]),
            (main(8), 2.1, []),
            (exited(CLEAN), 60, ["signal 1 15", "stopping"]),
            (empty(), 60, ["note 1: exited with 0", "dead"]),
        ],
    ),
    "forking: a step on the way to nothing": (
        FORKING,
        {},
        [*FORKING_UP, (exited(CLEAN), 2.1, ["find main 1"]), (empty(), 2.2, ["note 1: exited with 0", "dead"])],
    ),
    "forking: with a pid file, the daemon's end is its end": (
        FORKING,
        {"pid_file": "/run/x.pid"},
        [*FORKING_UP, (exited(CLEAN), 2.1, ["signal 1 15", "stopping"])],
    ),
    "forking: its program fails": (
        FORKING,
        NO,
        [
            *UP,
            (spawned(), 1, []),
            (launched(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 1", "failed"]),
        ],
    ),
    "forking: nothing is left behind": (
        FORKING,
        NO,
        [
            *UP,
            (spawned(), 1, []),
            (launched(), 2, ["find main 1"]),
            (empty(), 2, ["note 1: could not be started: its program ended and left no process behind", "failed"]),
        ],
    ),
    "forking: no pid file comes, and what is left is ended": (
        FORKING,
        {**NO, "pid_file": "/run/x.pid"},
        [
            *UP,
            (spawned(), 1, []),
            (launched(), 2, ["find main 1"]),
            (DEADLINE, 30, ["cancel 1", "signal 1 15", "stopping"]),
            (empty(), 31, ["note 1: timed out: not ready within 30 s", "failed"]),
        ],
    ),
    "forking: a stop while its program runs, which ends then": (
        FORKING,
        {},
        [
            *UP,
            (spawned(), 1, []),
            (STOP, 2, ["cancel 1", "signal 1 15", "stopping"]),
            (launched(), 2, []),
            (empty(), 3, ["note 1: exited with 0", "dead"]),
        ],
    ),
    "oneshot: it does not remain": (
        ONESHOT,
        {**NO, "remain_after_exit": False, "exec_stop": ONE, "exec_stop_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 2, ["run exec_stop[0]", "exec-stop"]),
            (empty(), 2, []),
            (hook(), 3, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 4, ["note 1: exited with 0", "dead"]),
            (START, 5, ["waiting"]),
        ],
    ),
    "oneshot: what it has brought about is undone at its stop": (
        ONESHOT,
        {**NO, "exec_start_post": ONE, "exec_stop": ONE, "exec_stop_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 2, ["run exec_start_post[0]", "start-post"]),
            (empty(), 2, []),
            (hook(), 3, ["note 1: exited with 0", "exited"]),
            (STOP, 4, ["run exec_stop[0]", "exec-stop"]),
            (hook(), 5, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 6, ["dead"]),
        ],
    ),
    "oneshot: a restart undoes it first": (
        ONESHOT,
        {**NO, "exec_stop_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 0", "exited"]),
            (RESTART, 4, ["run exec_stop_post[0]", "stop-post"]),
            (hook(CRASH), 6, ["waiting"]),
            (DEPS, 6, ["spawn 2", "starting"]),
        ],
    ),
    "oneshot: it fails, and only exec_stop_post is run": (
        ONESHOT,
        {**NO, "exec_stop": ONE, "exec_stop_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 6, ["note 1: exited with 1", "failed"]),
        ],
    ),
    "oneshot: a code of its own counts as success": (
        ONESHOT,
        {**NO, "success_exit_status": (1,)},
        [
            *UP,
            (spawned(), 1, []),
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 1", "exited"]),
        ],
    ),
    "commands: all of them, in order": (
        SIMPLE,
        {"exec_start_pre": TWO, "exec_start_post": ONE, "exec_reload": ONE, "exec_stop": TWO, "exec_stop_post": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (hook(), 1, ["run exec_start_pre[1]"]),
            (hook(), 2, ["spawn 1", "starting"]),
            (spawned(), 3, ["run exec_start_post[0]", "start-post"]),
            (hook(), 4, ["running"]),
            (RELOAD, 5, ["run exec_reload[0]", "reloading"]),
            (RELOAD, 5, []),
            (hook(), 6, ["running"]),
            (STOP, 7, ["run exec_stop[0]", "exec-stop"]),
            (hook(), 8, ["run exec_stop[1]"]),
            (exited(CLEAN), 9, []),
            (empty(), 9, []),
            (hook(), 9, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 10, ["note 1: exited with 0", "dead"]),
        ],
    ),
    "commands: one before the start fails, and those after the end are run": (
        SIMPLE,
        {**NO, "exec_start_pre": TWO, "exec_stop": ONE, "exec_stop_post": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (hook(CRASH), 1, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 1, ["note 1: could not be started: exec_start_pre[0] (a) exited with 1", "failed"]),
        ],
    ),
    "commands: a failure that is ignored": (
        SIMPLE,
        {"exec_start_pre": LENIENT},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (hook(NOT_FOUND), 1, ["run exec_start_pre[1]"]),
            (hook(), 2, ["spawn 1", "starting"]),
        ],
    ),
    "commands: one before the start takes too long, and is hard to end": (
        SIMPLE,
        {**NO, "exec_start_pre": TWO[1:]},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (DEADLINE, 3, ["end hook 15", "stopping"]),
            (DEADLINE, 13, ["end hook 9", "killing"]),
            (hook(KILLED), 14, ["note 1: timed out: exec_start_pre[0] (b) took more than 3 s", "failed"]),
        ],
    ),
    "commands: one takes too long that a reload has removed meanwhile": (
        SIMPLE,
        {**NO, "exec_start_pre": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (Redescribed(spec(SIMPLE, **NO)), 1, []),
            (DEADLINE, 30, ["end hook 15", "stopping"]),
            (hook(TERMED), 31, ["note 1: timed out: exec_start_pre took more than 30 s", "failed"]),
        ],
    ),
    "commands: one that cannot be killed blocks nothing": (
        SIMPLE,
        {**NO, "exec_stop_post": TWO[1:]},
        [
            *SIMPLE_UP,
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["run exec_stop_post[0]", "stop-post"]),
            (DEADLINE, 5, ["end hook 9", "killing"]),
            (DEADLINE, 15, ["unkillable 1", "unkillable"]),
            (START, 16, []),
            (hook(KILLED), 99, ["note 1: timed out: exec_stop_post[0] (b) takes too long", "waiting"]),
        ],
    ),
    "commands: a stop in each of them": (
        SIMPLE,
        {"exec_start_pre": ONE, "exec_start_post": ONE, "exec_stop": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (STOP, 1, ["end hook 15", "stopping"]),
            (hook(TERMED), 1, ["note 1: ended in an unknown way", "dead"]),
            (START, 2, ["waiting"]),
            (DEPS, 2, ["run exec_start_pre[0]", "start-pre"]),
            (hook(CLEAN, 2), 3, ["spawn 2", "starting"]),
            (spawned(2), 3, ["run exec_start_post[0]", "start-post"]),
            (STOP, 4, ["signal 2 15", "end hook 15", "stopping"]),
            (exited(TERMED, 2), 4, []),
            (empty(2), 4, []),
            (hook(TERMED, 2), 4, ["note 2: was killed by SIGTERM", "dead"]),
        ],
    ),
    "commands: one after the start fails": (
        SIMPLE,
        {**NO, "exec_start_post": ONE, "exec_stop": ONE},
        [
            *UP,
            (spawned(), 1, ["run exec_start_post[0]", "start-post"]),
            (hook(CRASH), 2, ["signal 1 15", "stopping"]),
            (exited(TERMED), 2, []),
            (empty(), 2, ["note 1: could not be started: exec_start_post[0] (a) exited with 1", "failed"]),
        ],
    ),
    "commands: a worker has its name only after exec_start_post": (
        WORKER,
        {"exec_start_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (ready(), 1, ["run exec_start_post[0]", "start-post"]),
            (hook(), 2, ["publish 1", "running"]),
            (STOP, 3, ["withdraw 1", "signal 1 15", "stopping"]),
        ],
    ),
    "commands: a worker that is stopped in exec_start_post has no name to take away": (
        WORKER,
        {"exec_start_post": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (ready(), 1, ["run exec_start_post[0]", "start-post"]),
            (STOP, 3, ["signal 1 15", "end hook 15", "stopping"]),
        ],
    ),
    "commands: a failed reload changes nothing": (
        SIMPLE,
        {"exec_reload": TWO},
        [
            *SIMPLE_UP,
            (RELOAD, 2, ["run exec_reload[0]", "reloading"]),
            (hook(CRASH), 3, ["running"]),
            (RELOAD, 4, ["run exec_reload[0]", "reloading"]),
            (hook(), 5, ["run exec_reload[1]"]),
            (DEADLINE, 8, ["end hook 9"]),
            (hook(KILLED), 8, ["running"]),
        ],
    ),
    "commands: a reload command that has the unit say when it is done": (
        NOTIFY,
        {"exec_reload": ONE},
        [
            *NOTIFY_UP,
            (RELOAD, 2, ["run exec_reload[0]", "reloading"]),
            (said(ReloadBegun), 2, []),
            (hook(), 3, []),
            (said(Ready), 4, ["running"]),
            (RELOAD, 5, ["run exec_reload[0]", "reloading"]),
            (said(ReloadBegun), 5, []),
            (said(Ready), 6, []),
            (hook(), 7, ["running"]),
        ],
    ),
    "commands: a stop during a reload": (
        SIMPLE,
        {"exec_reload": ONE, "exec_stop": ONE},
        [
            *SIMPLE_UP,
            (RELOAD, 2, ["run exec_reload[0]", "reloading"]),
            (STOP, 3, ["end hook 9", "exec-stop"]),
            (hook(KILLED), 3, ["run exec_stop[0]"]),
            (hook(CRASH), 4, ["signal 1 15", "stopping"]),
        ],
    ),
    "commands: exec_stop takes too long": (
        SIMPLE,
        {"exec_stop": TWO},
        [
            *SIMPLE_UP,
            (STOP, 3, ["run exec_stop[0]", "exec-stop"]),
            (DEADLINE, 13, ["signal 1 15", "end hook 15", "stopping"]),
            (exited(TERMED), 13, []),
            (empty(), 13, []),
            (hook(TERMED), 13, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "commands: exec_stop is run for what has ended by itself, as in systemd": (
        SIMPLE,
        NO | {"exec_stop": ONE},
        [
            *SIMPLE_UP,
            (exited(CRASH), 3, ["run exec_stop[0]", "exec-stop"]),
            (empty(), 3, []),
            (hook(), 4, ["note 1: exited with 1", "failed"]),
        ],
    ),
    "commands: a failed exec_stop_post is the cause when nothing else has failed": (
        SIMPLE,
        {"exec_stop_post": TWO},
        [
            *SIMPLE_UP,
            (exited(CLEAN), 3, ["signal 1 15", "stopping"]),
            (empty(), 3, ["run exec_stop_post[0]", "stop-post"]),
            (hook(CRASH), 4, ["note 1: exited with 1: in exec_stop_post[0] (a)", "backoff"]),
        ],
    ),
    "watchdog: signs of life are asked for; without one it is aborted": (
        NOTIFY,
        {"watchdog_s": 20.0, "restart": RestartPolicy.ON_WATCHDOG},
        [
            *NOTIFY_UP,
            (DEADLINE, 22, ["check life 1"]),
            (sign(21.5), 22, []),
            (DEADLINE, 41.5, ["check life 1"]),
            (sign(21.5), 41.5, ["signal main 1 6", "aborting"]),
            (said(Ready), 41.5, []),
            (Exited(NAME, 1, ExitCause.signaled(6), ("Thread 1", "  job.py")), 42, ["signal 1 15", "stopping"]),
            (empty(), 42, ["note 1: gave no sign of life: none for 20 s", "backoff"]),
        ],
    ),
    "watchdog: SIGABRT is of no use, nor is SIGTERM": (
        WORKER,
        {"watchdog_s": 20.0, "timeout_stop_s": 5.0, "exec_stop": ONE},
        [
            *UP,
            (spawned(), 1, []),
            (ready(), 2, ["publish 1", "running"]),
            (DEADLINE, 22, ["check life 1"]),
            (sign(0), 22, ["withdraw 1", "signal main 1 6", "aborting"]),
            (STOP, 23, []),
            (DEADLINE, 27, ["signal 1 15", "stopping"]),
            (DEADLINE, 32, ["signal 1 9", "killing"]),
            (exited(KILLED), 32, []),
            (empty(), 32, ["note 1: gave no sign of life: none for 20 s", "dead"]),
        ],
    ),
    "watchdog: it has itself aborted": (
        NOTIFY,
        {},
        [*NOTIFY_UP, (fired(), 5, ["signal main 1 6", "aborting"])],
    ),
    "watchdog: during a reload": (
        NOTIFY,
        {"watchdog_s": 5.0, "exec_reload": ONE},
        [
            *NOTIFY_UP,
            (RELOAD, 6, ["run exec_reload[0]", "reloading"]),
            (DEADLINE, 7, ["check life 1"]),
            (sign(6.5), 7, []),
            (DEADLINE, 11.5, ["check life 1"]),
            (sign(6.5), 11.5, ["end hook 9", "signal main 1 6", "aborting"]),
            (hook(KILLED), 11.5, []),
            (exited(ExitCause.signaled(6)), 12, ["signal 1 15", "stopping"]),
            (empty(), 12, ["note 1: gave no sign of life: none for 5 s", "backoff"]),
        ],
    ),
    "time: it has run as long as it may, unless it asks for more": (
        SIMPLE,
        {"runtime_max_s": 100.0, "watchdog_s": 70.0, "exec_stop": ONE},
        [
            *SIMPLE_UP,
            (DEADLINE, 71, ["check life 1"]),
            (sign(60), 71, []),
            (extended(20), 90, []),
            (DEADLINE, 110, ["run exec_stop[0]", "exec-stop"]),
            (hook(), 111, ["signal 1 15", "stopping"]),
            (exited(TERMED), 111, []),
            (empty(), 111, ["note 1: timed out: it has run for 109 s, as long as it may", "backoff"]),
        ],
    ),
    "kill mode mixed: the main process has its time, the others have not": (
        SIMPLE,
        {"kill_mode": KillMode.MIXED},
        [
            *SIMPLE_UP,
            (STOP, 2, ["signal main 1 15", "stopping"]),
            (exited(TERMED), 3, ["signal 1 9"]),
            (empty(), 3, ["note 1: was killed by SIGTERM", "dead"]),
        ],
    ),
    "kill mode mixed: the main process does not end": (
        SIMPLE,
        {"kill_mode": KillMode.MIXED},
        [
            *SIMPLE_UP,
            (STOP, 2, ["signal main 1 15", "stopping"]),
            (DEADLINE, 12, ["signal 1 9", "killing"]),
        ],
    ),
    "kill mode process: others are left to themselves": (
        SIMPLE,
        {"kill_mode": KillMode.PROCESS},
        [
            *SIMPLE_UP,
            (STOP, 2, ["signal main 1 15", "stopping"]),
            (DEADLINE, 12, ["signal main 1 9", "killing"]),
            (exited(KILLED), 12, ["note 1: timed out: not down 10 s after SIGTERM", "dead"]),
            (empty(), 50, []),
        ],
    ),
    "kill mode process: it ends by itself, and the next is started beside what it left": (
        SIMPLE,
        {"kill_mode": KillMode.PROCESS},
        [
            *SIMPLE_UP,
            (exited(CRASH), 2, ["note 1: exited with 1", "backoff"]),
            (empty(), 2, []),
            (DEADLINE, 3, ["waiting"]),
            (DEPS, 3, ["spawn 2", "starting"]),
            (empty(1), 4, []),
        ],
    ),
    "nothing is killed where that is not allowed, and nothing is started beside it": (
        SIMPLE,
        {"send_sigkill": False},
        [
            *SIMPLE_UP,
            (STOP, 2, ["signal 1 15", "stopping"]),
            (DEADLINE, 12, ["signal 1 15", "unkillable 1", "unkillable"]),
            (START, 13, []),
            (exited(CLEAN), 99, []),
            (empty(), 99, ["note 1: timed out: not down 10 s after SIGTERM", "waiting"]),
        ],
    ),
    "an end that is on record is told again by who knows less of it": (
        ONESHOT,
        NO,
        [
            *UP,
            (spawned(), 1, []),
            (exited(CLEAN), 2, ["signal 1 15", "stopping"]),
            (exited(ExitCause.unknown()), 3, []),
            (empty(), 3, ["note 1: exited with 0", "exited"]),
        ],
    ),
    "start limit: slow retry": (
        SIMPLE,
        {"start_limit_burst": 1, "start_limit_action": StartLimitAction.SLOW_RETRY, "restart_max_delay_s": 3.0},
        [
            *SIMPLE_UP,
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 1", "backoff"]),
            (DEADLINE, 2.1, ["waiting"]),
            (DEPS, 2.1, ["backoff"]),
            (DEADLINE, 10, ["waiting"]),
            (DEPS, 10, ["spawn 2", "starting"]),
        ],
    ),
    "start limit: everything ends": (
        SIMPLE,
        {"start_limit_burst": 1, "start_limit_action": StartLimitAction.EXIT},
        [
            *SIMPLE_UP,
            (exited(CRASH), 2, ["signal 1 15", "stopping"]),
            (empty(), 2, ["note 1: exited with 1", "backoff"]),
            (DEADLINE, 2.1, ["waiting"]),
            (DEPS, 2.1, ["escalate: job@1: start limit hit: 1 starts within 10 s", "failed"]),
        ],
    ),
    "what a probe finds unhealthy has no exec_stop": (
        SIMPLE,
        {"exec_stop": ONE, "exec_stop_post": ONE},
        [*SIMPLE_UP, (unhealthy(), 2, ["signal 1 15", "stopping"])],
    ),
    "a spawn fails without a process, and exec_stop_post is run": (
        SIMPLE,
        {**NO, "exec_stop_post": ONE},
        [
            *UP,
            (failed(), 1, ["run exec_stop_post[0]", "stop-post"]),
            (hook(), 2, ["note 1: could not be started: init raised", "failed"]),
        ],
    ),
    "a required unit fails while a command runs": (
        SIMPLE,
        {"exec_start_pre": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (FAILED_DEP, 1, ["end hook 15", "stopping"]),
            (hook(TERMED), 1, ["note 1: ended in an unknown way", "failed"]),
        ],
    ),
    "parsupd was replaced while it ended a run": (
        SIMPLE,
        {"timeout_stop_s": 5.0},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["spawn 1", "starting"]),
            (spawned(), 1, ["running"]),
            (STOP, 2, ["signal 1 15", "stopping"]),
            (EndInterrupted(NAME, 1), 3, ["signal 1 15"]),
            (DEADLINE, 7, ["signal 1 9", "killing"]),
            (EndInterrupted(NAME, 1), 8, ["signal 1 9"]),
        ],
    ),
    "parsupd was replaced while a command ran": (
        SIMPLE,
        {"exec_start_pre": ONE},
        [
            (START, 0, ["waiting"]),
            (DEPS, 0, ["run exec_start_pre[0]", "start-pre"]),
            (SpawnInterrupted(NAME, 1), 1, ["waiting"]),
            (DEPS, 1, ["run exec_start_pre[0]", "start-pre"]),
        ],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_history(name: str) -> None:
    """Each event of the history has exactly the effects that are written beside it, and the invariants hold."""
    kind, changes, history = HISTORIES[name]
    state = UnitState(NAME, spec(kind, **changes))
    for event, now, expected in history:
        if event is DEADLINE:
            due = next_deadline(state)
            assert due is not None, state.reason
            assert due <= now, "it is not due yet"
        state, effects = step(state, event, now)
        assert [short(effect) for effect in effects] == expected, "\n".join(map(str, state.story))
        check(state)


def test_a_oneshot_that_does_not_remain_is_not_wanted_any_more() -> None:
    """It has done what was wanted; units that come after it need not wait."""
    state = play(
        UnitState(NAME, spec(ONESHOT, remain_after_exit=False)), START, DEPS, spawned(), exited(CLEAN), empty()
    )
    assert (state.sub_state, state.target) == (SubState.DEAD, Target.DOWN)


def test_the_stack_is_kept_for_why() -> None:
    """What the process left when its watchdog expired, with the incarnation that it belongs to."""
    state = play(UnitState(NAME, spec(NOTIFY)), START, DEPS, spawned(), said(Ready), fired())
    state = play(state, Exited(NAME, 1, ExitCause.signaled(6), ("Thread 1",)), empty())
    assert state.incarnations[0].stack == ("Thread 1",)


def test_signs_of_life_are_no_story() -> None:
    """A unit that is well for days still tells how it came up."""
    state = play(UnitState(NAME, spec(NOTIFY, watchdog_s=1.0)), START, DEPS, spawned(), said(Ready))
    before = state.story
    for now in range(1, 100):
        state = play(state, DEADLINE, sign(now - 0.1), now=float(now))
    assert state.story == before


def test_the_spread_of_the_longest_run_is_even_and_always_the_same() -> None:
    """Instances that start together end one by one, and a look at it anew does not change it."""
    values = sorted(chance(f"job@{number}:1") for number in range(1, 101))
    assert all(0 <= value <= 1 for value in values)
    assert max(high - low for low, high in itertools.pairwise(values)) < 0.12
    state = play(UnitState(NAME, spec(SIMPLE, runtime_max_s=10.0, runtime_max_spread_s=5.0)), START, DEPS, spawned())
    due = next_deadline(state)
    assert due is not None
    assert 10 <= due <= 15
    longer = spec(SIMPLE, runtime_max_s=20.0, runtime_max_spread_s=5.0)
    assert next_deadline(play(state, Redescribed(longer), now=3.0)) == pytest.approx(due + 10)


def test_commands_may_change_while_they_run() -> None:
    """A reload takes some away: the one that runs is the last, and no index goes wrong."""
    state = play(UnitState(NAME, spec(SIMPLE, exec_start_pre=TWO)), START, DEPS, hook())
    state = play(state, Redescribed(spec(SIMPLE)), hook(CRASH))
    assert state.sub_state is SubState.STARTING
