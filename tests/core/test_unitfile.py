"""Unit files: what is accepted, what is refused and where the message points."""

import math
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.attributes import INFINITY, Limit
from parsupd.core.probe_keys import Probe
from parsupd.core.readers import BadValueError
from parsupd.core.toml_lines import key_lines
from parsupd.core.unit_keys import DAEMON_KEYS, GROUP_KEYS, UNIT_KEYS
from parsupd.core.unitfile import (
    ConfigurationError,
    check_edges,
    include_patterns,
    parse,
    parse_environment,
    parse_one,
    resolve,
)
from parsupd.core.units import (
    SIGNALS,
    Dependency,
    Escalation,
    GroupSpec,
    GroupStrategy,
    Hook,
    KillMode,
    ListenAddress,
    LogFormat,
    MaxRssAction,
    NotifyAccess,
    Output,
    OutputKind,
    Overlap,
    RestartPolicy,
    StartLimitAction,
    UnitSpec,
    UnitType,
)

MAIN = "/etc/parsupd/parsupd.toml"


def one(text: str) -> UnitSpec:
    """The only unit of a file."""
    (spec,) = parse([(MAIN, text)], MAIN).units.values()
    return spec


def problems(*files: str) -> list[str]:
    """The messages for files a, b, c ...; the first is the main one."""
    named = [(f"/etc/{name}.toml", text) for name, text in zip("abc", files, strict=False)]
    with pytest.raises(ConfigurationError) as caught:
        parse(named, "/etc/a.toml")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).replace("/etc/", "").splitlines()


EVERYTHING = """
[parsupd]
runtime_dir = "run"
state_dir = "/var/lib/x"
log = "json"
lease_sec = 5
all_logs_size = "1G"
restart_storm_burst = 7
restart_storm_interval_sec = 2
include = ["units.d/*.toml", "/srv/*.toml"]

[unit.marketdata]
type = "worker"
worker = "marketdata.job:Feed"
init = ["a", 1]

[unit.migrate]
type = "oneshot"
exec = ["/usr/bin/migrate", "--all", ""]
schedule = "0 3 * * mon"
schedule_jitter_sec = 60
schedule_overlap = "queue"

exit_with = true
restart = "on-failure"
remain_after_exit = true
exec_start_post = ["touch", "done"]
exec_stop = ["undo"]

[unit.refresh]
type = "oneshot"
exec = ["/usr/bin/refresh"]
schedule_every_sec = 90

[unit.pricing]
type = "worker"
description = "Prices"
worker = "pricing.job:Pricing.Inner"
python = "venv/bin/python"
instances = 4
enabled = false
requires = ["marketdata", "migrate:completed"]
wants = ["log"]
after = []
binds_to = ["marketdata"]
part_of = ["log"]
conflicts = ["pricing2"]
on_failure = ["pricing2"]
restart = "on-abnormal"
restart_sec = 1
restart_steps = 3
restart_max_delay_sec = 60.5
restart_reset_after_sec = 7
start_limit_burst = 0
start_limit_interval_sec = 3
timeout_start_sec = inf
timeout_stop_sec = 5
kill_signal = "SIGINT"
kill_mode = "mixed"
send_sigkill = false
start_limit_action = "slow-retry"
success_exit_status = [75, "TERM"]
restart_prevent_exit_status = [255]
restart_force_exit_status = ["SIGBUS"]
runtime_max_sec = 3600
runtime_max_spread_sec = 60
watchdog_sec = 20
exec_start_pre = ["mkdir", "-p", "x"]
exec_reload = ["kill", "-HUP"]
exec_stop_post = [{ exec = ["rm", "x"], timeout_sec = 3, ignore_failure = true }, { exec = ["sync"] }]
stdout = "append:../log/out"
stderr = "null"
log_format = "json"
log_rotate_size = "1M"
log_rotate_sec = 60
log_total_size = 2097152
log_compress = false
log_full_policy = "drop"
log_block_sec = 2
environment = { TZ = "UTC" }
environment_file = ["/etc/default/pricing", "pricing.env", "-local.env"]
working_directory = ".."
umask = "0027"
limit_as = "2G"
limit_core = 0
limit_cpu = [60, "infinity"]
limit_data = "infinity"
limit_fsize = "10M"
limit_locks = 5
limit_memlock = "64K"
limit_msgqueue = 819200
limit_nice = 20
limit_nofile = 65536
limit_nproc = [100, 200]
limit_rss = 1
limit_rtprio = 1
limit_rttime = 200000
limit_sigpending = 10
limit_stack = "8M"
nice = -5
cpu_affinity = [3, "0-1"]
oom_score_adj = 500
user = "pricing"
group = 1000
supplementary_groups = ["adm", 27]
memory_max = "64M"
tasks_max = 50
max_rss = "1G"
max_rss_action = "stop"
[unit.pricing.readiness]
rpc = "has_prices"
[unit.pricing.liveness]
rpc = "ping"
interval_sec = 5
[unit.pricing.init]
currency = "EUR"

[unit.log]
type = "simple"
exec = ["logger"]
sockets = ["127.0.0.1:80", "[::1]:8080", "/run/log.sock"]

[unit.pricing2]
type = "simple"
exec = ["x"]

[unit.daemon]
type = "forking"
exec = ["daemon"]
pid_file = "run/daemon.pid"
notify_access = "all"

[group.web]
units = ["log", "pricing2"]
strategy = "rest_for_one"
intensity = 0
period_sec = 2.5
escalation = "exit"
"""


def test_every_key_arrives() -> None:
    """A file with all keys becomes exactly these values; paths are resolved against the file."""
    configuration = parse([(MAIN, EVERYTHING)], MAIN)
    daemon = configuration.daemon
    assert daemon.runtime_dir == "/etc/parsupd/run"
    assert daemon.state_dir == "/var/lib/x"
    assert daemon.log is LogFormat.JSON
    assert daemon.lease_s == 5.0
    assert daemon.all_logs_size == 1 << 30
    assert (daemon.restart_storm_burst, daemon.restart_storm_interval_s) == (7, 2.0)
    assert daemon.include == ("/etc/parsupd/units.d/*.toml", "/srv/*.toml")
    assert list(configuration.units) == ["marketdata", "migrate", "refresh", "pricing", "log", "pricing2", "daemon"]
    assert configuration.units["pricing"] == UnitSpec(
        name="pricing",
        source=MAIN,
        type=UnitType.WORKER,
        description="Prices",
        worker="pricing.job:Pricing.Inner",
        python="/etc/parsupd/venv/bin/python",
        init={"currency": "EUR"},
        instances=4,
        enabled=False,
        requires=(Dependency("marketdata"), Dependency("migrate", completed=True)),
        wants=(Dependency("log"),),
        binds_to=(Dependency("marketdata"),),
        part_of=("log",),
        conflicts=("pricing2",),
        on_failure=("pricing2",),
        restart=RestartPolicy.ON_ABNORMAL,
        restart_s=1.0,
        restart_steps=3,
        restart_max_delay_s=60.5,
        restart_reset_after_s=7.0,
        start_limit_burst=0,
        start_limit_interval_s=3.0,
        timeout_start_s=math.inf,
        timeout_stop_s=5.0,
        kill_signal=SIGNALS["SIGINT"],
        kill_mode=KillMode.MIXED,
        send_sigkill=False,
        start_limit_action=StartLimitAction.SLOW_RETRY,
        success_exit_status=(75, "SIGTERM"),
        restart_prevent_exit_status=(255,),
        restart_force_exit_status=("SIGBUS",),
        runtime_max_s=3600.0,
        runtime_max_spread_s=60.0,
        watchdog_s=20.0,
        exec_start_pre=(Hook(("mkdir", "-p", "x")),),
        exec_reload=(Hook(("kill", "-HUP")),),
        exec_stop_post=(Hook(("rm", "x"), 3.0, True), Hook(("sync",))),
        stdout=Output(OutputKind.APPEND, "/etc/log/out"),
        stderr=Output(OutputKind.NULL),
        log_format="json",
        log_rotate_size=1 << 20,
        log_rotate_s=60.0,
        log_total_size=2 << 20,
        log_compress=False,
        log_full_policy="drop",
        log_block_s=2.0,
        environment={"TZ": "UTC"},
        environment_file=("/etc/default/pricing", "/etc/parsupd/pricing.env", "-/etc/parsupd/local.env"),
        working_directory="/etc",
        umask=0o027,
        limit_as=Limit(2 << 30, 2 << 30),
        limit_core=Limit(0, 0),
        limit_cpu=Limit(60, INFINITY),
        limit_data=Limit(INFINITY, INFINITY),
        limit_fsize=Limit(10 << 20, 10 << 20),
        limit_locks=Limit(5, 5),
        limit_memlock=Limit(65536, 65536),
        limit_msgqueue=Limit(819200, 819200),
        limit_nice=Limit(20, 20),
        limit_nofile=Limit(65536, 65536),
        limit_nproc=Limit(100, 200),
        limit_rss=Limit(1, 1),
        limit_rtprio=Limit(1, 1),
        limit_rttime=Limit(200000, 200000),
        limit_sigpending=Limit(10, 10),
        limit_stack=Limit(8 << 20, 8 << 20),
        nice=-5,
        cpu_affinity=(0, 1, 3),
        oom_score_adj=500,
        user="pricing",
        group="1000",
        supplementary_groups=("adm", "27"),
        memory_max=64 << 20,
        tasks_max=50,
        max_rss=1 << 30,
        max_rss_action=MaxRssAction.STOP,
        readiness=Probe(rpc="has_prices"),
        liveness=Probe(rpc="ping", interval_s=5.0),
    )
    assert configuration.units["log"].sockets == (
        ListenAddress("127.0.0.1", 80),
        ListenAddress("::1", 8080),
        ListenAddress(path="/run/log.sock"),
    )
    assert configuration.groups == {
        "web": GroupSpec(
            name="web",
            source=MAIN,
            units=("log", "pricing2"),
            strategy=GroupStrategy.REST_FOR_ONE,
            intensity=0,
            period_s=2.5,
            escalation=Escalation.EXIT,
        )
    }
    assert configuration.units["log"].start_limit_burst == 0
    migrate, refresh = configuration.units["migrate"], configuration.units["refresh"]
    assert str(migrate.schedule) == "0 3 * * mon"
    assert (migrate.schedule_jitter_s, migrate.schedule_overlap) == (60.0, Overlap.QUEUE)
    assert (refresh.schedule_every_s, refresh.is_scheduled, refresh.in_default_target) == (90.0, True, False)
    assert configuration.units["migrate"].exec == ("/usr/bin/migrate", "--all", "")
    daemon_unit = configuration.units["daemon"]
    assert (daemon_unit.pid_file, daemon_unit.notify_access) == ("/etc/parsupd/run/daemon.pid", NotifyAccess.ALL)
    assert configuration.units["migrate"].exec_stop == (Hook(("undo",)),)
    assert configuration.units["marketdata"].init == ("a", 1)


def test_keys_and_fields_are_the_same() -> None:
    """Each key of the table has its field, and each field but name, source and transient has its key."""
    keys = {key.removesuffix("_sec") + "_s" if key.endswith("_sec") else key for key in UNIT_KEYS}
    assert keys == {field.name for field in fields(UnitSpec)} - {"name", "source", "transient"}


def test_the_file_above_uses_every_key() -> None:
    """So that test_every_key_arrives says what its name says."""
    assert {*UNIT_KEYS, *GROUP_KEYS, *DAEMON_KEYS} <= {path[-1] for path in key_lines(EVERYTHING)}


def test_defaults_of_a_daemon_and_of_a_oneshot() -> None:
    """As DESIGN 4.1 has them; a oneshot is not repeated and may take its time."""
    simple = one('[unit.a]\ntype = "simple"\nexec = ["x"]')
    assert (simple.restart, simple.restart_s, simple.restart_steps) == (RestartPolicy.ON_FAILURE, 0.1, 5)
    assert (simple.start_limit_burst, simple.start_limit_interval_s) == (5, 10)
    assert (simple.timeout_start_s, simple.timeout_stop_s) == (30, 10)
    assert (simple.restart_max_delay_s, simple.restart_reset_after_s) == (30, 60)
    assert (simple.kill_signal, simple.instances, simple.enabled, simple.exit_with) == (15, 1, True, False)
    oneshot = one('[unit.a]\ntype = "oneshot"\nexec = ["x"]')
    assert (oneshot.restart, oneshot.timeout_start_s) == (RestartPolicy.NO, math.inf)


def test_stderr_follows_stdout_unless_it_is_set() -> None:
    """As StandardError= does in systemd."""
    assert one('[unit.a]\ntype = "simple"\nexec = ["x"]\nstdout = "null"').stderr.kind is OutputKind.NULL


HEAD = '[unit.a]\ntype = "simple"\nexec = ["x"]\n'
KINDS = "worker, simple, notify, forking, oneshot"
PROGRAMS = "simple and notify and forking and oneshot"

# text of the file -> the messages, in order
REFUSED = {
    '[unit.a]\ntype = "simple"\nexec = ["x"]\nrestrt_sec = 1': [
        "a.toml:4: unit.a.restrt_sec: unknown key; did you mean 'restart_sec'?"
    ],
    HEAD + "watchdog_sec = 0": ["a.toml:4: unit.a.watchdog_sec: must be 0.1 or more, or inf, not 0"],
    HEAD + "stop_signal = 'INT'": ["a.toml:4: unit.a.stop_signal: unknown key; did you mean 'kill_signal'?"],
    HEAD + "success_exit_status = [256]": [
        (
            "a.toml:4: unit.a.success_exit_status[0]: must be an exit code from 0 to 255, or the name of a signal, "
            "not 256"
        )
    ],
    HEAD + "restart_prevent_exit_status = ['SIGTREM']": [
        (
            "a.toml:4: unit.a.restart_prevent_exit_status[0]: must be the name of a signal, not 'SIGTREM'; "
            "did you mean 'SIGTERM'?"
        )
    ],
    HEAD + "exec_stop = 'x'": [
        ("a.toml:4: unit.a.exec_stop: must be an array of strings (a command) or of tables (commands), not 'x'")
    ],
    HEAD + "exec_stop = []": ["a.toml:4: unit.a.exec_stop: must not be empty"],
    HEAD + "exec_stop = [['x']]": ["a.toml:4: unit.a.exec_stop[0]: must be a string, not ['x']"],
    HEAD + "exec_stop = [{ timeout_sec = 1 }]": ["a.toml:4: unit.a.exec_stop[0]: needs the key 'exec'"],
    HEAD + "exec_stop = [{ exec = ['x'] }, 'y']": [
        "a.toml:4: unit.a.exec_stop[1]: must be a table with `exec`, as its neighbours are, not 'y'"
    ],
    HEAD + "exec_stop = [{ exec = ['x'], timout_sec = 1 }]": [
        "a.toml:4: unit.a.exec_stop[0]: has an unknown key 'timout_sec'; did you mean 'timeout_sec'?"
    ],
    HEAD + "exec_stop = [{ exec = ['x'], timeout_sec = -1 }]": [
        "a.toml:4: unit.a.exec_stop[0].timeout_sec: must be a number of seconds, 0 or more, or inf, not -1"
    ],
    HEAD + "remain_after_exit = true": [
        "a.toml:4: unit.a.remain_after_exit: is for units of type oneshot only, and this one is simple"
    ],
    HEAD + "requires = ['b']\n[unit.b]\ntype = 'oneshot'\nexec = ['x']\nremain_after_exit = false": [
        ("a.toml:4: unit.a.requires[0]: 'b' does not stay active after it has exited: name it in `wants` or `after`")
    ],
    HEAD + 'restart_sec = "1"': ["a.toml:4: unit.a.restart_sec: must be a number of seconds, 0 or more, not '1'"],
    HEAD + "restart_sec = -1": ["a.toml:4: unit.a.restart_sec: must be a number of seconds, 0 or more, not -1"],
    HEAD + "restart_sec = true": ["a.toml:4: unit.a.restart_sec: must be a number of seconds, 0 or more, not True"],
    HEAD + "restart_sec = inf": ["a.toml:4: unit.a.restart_sec: must be a number of seconds, 0 or more, not inf"],
    HEAD + "timeout_stop_sec = nan": [
        "a.toml:4: unit.a.timeout_stop_sec: must be a number of seconds, 0 or more, or inf, not nan"
    ],
    HEAD + "instances = 10001": ["a.toml:4: unit.a.instances: must be a whole number from 0 to 10000, not 10001"],
    HEAD + "instances = 1.0": ["a.toml:4: unit.a.instances: must be a whole number from 0 to 10000, not 1.0"],
    HEAD + "enabled = 1": ["a.toml:4: unit.a.enabled: must be true or false, not 1"],
    HEAD + 'restart = "on-fail"': [
        (
            "a.toml:4: unit.a.restart: must be one of no, on-success, on-failure, on-abnormal, on-watchdog, always, "
            "not 'on-fail'; did you mean 'on-failure'?"
        )
    ],
    HEAD + 'kill_signal = "SIGTREM"': [
        "a.toml:4: unit.a.kill_signal: must be the name of a signal, not 'SIGTREM'; did you mean 'SIGTERM'?"
    ],
    HEAD + 'stdout = "jornal"': [
        (
            "a.toml:4: unit.a.stdout: must be one of journal, file, null, inherit, append:/path, not 'jornal'; "
            "did you mean 'journal'?"
        )
    ],
    HEAD + 'stdout = "append:"': [
        (
            "a.toml:4: unit.a.stdout: must be one of journal, file, null, inherit, append:/path, not 'append:'; "
            "did you mean 'append:/path'?"
        )
    ],
    HEAD + "umask = 22": ['a.toml:4: unit.a.umask: must be a string of octal digits such as "022", not 22'],
    HEAD + "environment = { TZ = 1 }": ["a.toml:4: unit.a.environment.TZ: must be a string, not 1"],
    HEAD + "[unit.a.environment]\nTZ = 1": ["a.toml:4: unit.a.environment.TZ: must be a string, not 1"],
    HEAD + 'environment = { "1A" = "x" }': ["a.toml:4: unit.a.environment.1A: is not the name of a variable"],
    HEAD + 'requires = ["b", 1]': ["a.toml:4: unit.a.requires[1]: must be a string, not 1"],
    HEAD + 'after = "b"': ["a.toml:4: unit.a.after: must be an array, not 'b'"],
    HEAD + 'worker = "m:C"': ["a.toml:4: unit.a.worker: is for units of type worker only, and this one is simple"],
    '[unit.a]\ntype = "simple"': ["a.toml:1: unit.a: a unit of type simple needs the key 'exec'"],
    '[unit.a]\ntype = "worker"\nexec = ["x"]': [
        "a.toml:1: unit.a: a unit of type worker needs the key 'worker'",
        f"a.toml:3: unit.a.exec: is for units of type {PROGRAMS} only, and this one is worker",
    ],
    '[unit.a]\ntype = "worker"\nworker = "module.Class"': [
        "a.toml:3: unit.a.worker: must be \"module:Class\", not 'module.Class'"
    ],
    '[unit.a]\nexec = ["x"]': [f"a.toml:1: unit.a: needs a type: {KINDS}"],
    '[unit.a]\ntype = "frking"\nexec = ["x"]': [
        f"a.toml:2: unit.a.type: must be one of {KINDS}, not 'frking'; did you mean 'forking'?"
    ],
    '[unit.a]\ntype = "simple"\nexec = []': ["a.toml:3: unit.a.exec: must not be empty"],
    '[unit.a]\ntype = "simple"\nexec = [""]': ["a.toml:3: unit.a.exec[0]: must not be empty"],
    '[unit.a]\ntype = "simple"\nexec = "x --flag"': ["a.toml:3: unit.a.exec: must be an array, not 'x --flag'"],
    '[unit.a]\ntype = "oneshot"\nexec = ["x"]\nreadiness = { tcp = "/x" }': [
        "a.toml:4: unit.a.readiness: is for units of type worker and simple and notify and forking only, and this one is oneshot"
    ],
    HEAD + "[unit.a.readiness]\nrpc = 'ping'": [
        "a.toml:4: unit.a.readiness.rpc: is for units of type worker only, and this one is simple"
    ],
    '[unit.a]\ntype = "oneshot"\nexec = ["x"]\nrestart = "always"': [
        "a.toml:4: unit.a.restart: a oneshot that has done its work is not repeated: not 'always'"
    ],
    '[unit."a@b"]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:1: unit.a@b: a unit's name has letters, digits, dots, dashes and underscores, 128 at most"
    ],
    "unit = 1": ["a.toml:1: unit: must be tables [unit.NAME], not 1"],
    "[unit]\na = 1": ["a.toml:2: unit.a: must be a table, not 1"],
    "[units.a]": ["a.toml:1: units: unknown table or key; did you mean 'unit'?"],
    '[parsupd]\nlog = "jsn"': [
        "a.toml:2: parsupd.log: must be one of auto, journal, console, json, not 'jsn'; did you mean 'json'?"
    ],
    "[parsupd]\nruntimedir = 1": ["a.toml:2: parsupd.runtimedir: unknown key; did you mean 'runtime_dir'?"],
    HEAD + 'requires = ["pricng"]\n[unit.pricing]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:4: unit.a.requires[0]: there is no unit 'pricng'; did you mean 'pricing'?"
    ],
    HEAD + 'after = ["b:completed"]\n[unit.b]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:4: unit.a.after[0]: only a oneshot is ever completed, and 'b' is of type simple"
    ],
    HEAD + 'after = ["b:ready"]': ["a.toml:4: unit.a.after[0]: 'b:ready': the only condition is 'b:completed'"],
    HEAD + 'part_of = ["pricng"]\n[unit.pricing]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:4: unit.a.part_of[0]: there is no unit 'pricng'; did you mean 'pricing'?"
    ],
    HEAD + 'conflicts = ["a", "b"]': [
        "a.toml:4: unit.a.conflicts[0]: a unit cannot conflict with itself",
        "a.toml:4: unit.a.conflicts[1]: there is no unit 'b'",
    ],
    HEAD + 'conflicts = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:4: unit.a.conflicts[0]: a and b conflict, and both are started with parsupd"
    ],
    HEAD
    + 'enabled = false\nconflicts = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]\n'
    + '[unit.c]\ntype = "simple"\nexec = ["x"]\nbinds_to = ["a"]': [
        "a.toml:5: unit.a.conflicts[0]: a and b conflict, and both are started with parsupd (a for c)"
    ],
    HEAD
    + 'enabled = false\nconflicts = ["b"]\n[unit.b]\nenabled = false\ntype = "simple"\nexec = ["x"]\n'
    + '[unit.c]\nenabled = false\ntype = "simple"\nexec = ["x"]\nrequires = ["b"]\nwants = ["a"]': [
        "a.toml:5: unit.a.conflicts[0]: c needs a and b, and they conflict"
    ],
    HEAD + 'enabled = false\nconflicts = ["b"]\nwants = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]': [
        "a.toml:5: unit.a.conflicts[0]: a needs b, with which it conflicts"
    ],
    HEAD + 'binds_to = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]\npart_of = ["a"]': [
        "a.toml:1: unit.a: units wait for each other in a cycle: a -> b -> a"
    ],
    HEAD + 'on_failure = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]\nrequires = ["a"]': [
        "a.toml:1: unit.a: a failure would start what has failed: a -> b -> a"
    ],
    HEAD + 'on_failure = ["a"]': ["a.toml:1: unit.a: a failure would start what has failed: a -> a"],
    HEAD + '[group.g]\nunits = ["b", "a", "a"]\nstrategy = "x"\n[group.h]\nunits = []\n[group.i]\nsize = 1': [
        "a.toml:6: group.g.strategy: must be one of one_for_one, one_for_all, rest_for_one, not 'x'",
        "a.toml:8: group.h.units: must not be empty",
        "a.toml:10: group.i.size: unknown key",
        "a.toml:9: group.i: needs the key 'units'",
    ],
    HEAD + 'start_limit_burst = 3\n[group.g]\nunits = ["b", "a", "a"]': [
        "a.toml:6: group.g.units[0]: there is no unit 'b'",
        "a.toml:4: unit.a.start_limit_burst: restarts of a are counted by its group g: set intensity there",
        "a.toml:6: group.g.units[2]: a is already in group g",
    ],
    HEAD + 'after = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]\n[group.g]\nunits = ["a", "b"]': [
        "a.toml:1: unit.a: units wait for each other in a cycle: a -> b -> a"
    ],
    "group = 1": ["a.toml:1: group: must be tables [group.NAME], not 1"],
    HEAD + 'after = ["a"]': ["a.toml:1: unit.a: units wait for each other in a cycle: a -> a"],
    HEAD
    + 'requires = ["b"]\n[unit.b]\ntype = "simple"\nexec = ["x"]\nwants = ["c"]\n'
    + '[unit.c]\ntype = "simple"\nexec = ["x"]\nafter = ["a"]': [
        "a.toml:1: unit.a: units wait for each other in a cycle: a -> b -> c -> a"
    ],
    "[unit.a]\ntype = simple": ["a.toml:2: not TOML: Invalid value in column 8"],
    '[unit.a]\ntype = """simple': ["a.toml:2: not TOML: Unterminated string (at end of document)"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    """File, line, key path, what was expected, what is there, and the nearest valid name."""
    assert problems(text) == REFUSED[text]


def test_all_errors_of_all_files_are_told() -> None:
    """Not only the first, and in the order of the files."""
    assert problems(HEAD + "umask = 1\nfoo = 1", "x = ", '[unit.c]\ntype = "simple"\nexec = 1') == [
        'a.toml:4: unit.a.umask: must be a string of octal digits such as "022", not 1',
        "a.toml:5: unit.a.foo: unknown key",
        "b.toml:1: not TOML: Invalid value (at end of document)",
        "c.toml:3: unit.c.exec: must be an array, not 1",
    ]


def test_a_unit_may_stand_in_one_file_only() -> None:
    """The second place is the wrong one, and the first is named."""
    assert problems(HEAD, HEAD) == ["b.toml:1: unit.a: the unit is also in a.toml"]


def test_only_the_main_file_has_settings() -> None:
    """An included file cannot change the daemon."""
    assert problems(HEAD, '[parsupd]\nlog = "json"') == ["b.toml:1: parsupd: only the main file may have this table"]


def test_a_broken_unit_is_no_unknown_dependency() -> None:
    """One mistake, one message: naming a unit that could not be read is right."""
    text = HEAD + 'requires = ["b"]\n[unit.b]\ntype = "simple"'
    assert problems(text) == ["a.toml:5: unit.b: a unit of type simple needs the key 'exec'"]
    assert len(problems(HEAD + 'requires = ["b"]', "not toml")) == 1


def test_dependencies_of_a_broken_unit_are_checked_too() -> None:
    """So that the second run of --check does not find more than the first."""
    assert problems(HEAD + "foo = 1\nrequires = ['aa']") == [
        "a.toml:4: unit.a.foo: unknown key",
        "a.toml:5: unit.a.requires[0]: there is no unit 'aa'; did you mean 'a'?",
    ]


def test_dependencies_cross_files() -> None:
    """Units of all files are one set."""
    second = '[unit.b]\ntype = "simple"\nexec = ["x"]\nrequires = ["a"]'
    assert list(parse([("/a.toml", HEAD), ("/b.toml", second)], "/a.toml").units) == ["a", "b"]


def test_include_patterns_come_before_everything_else() -> None:
    """The default is units.d beside the file; bad settings do not matter yet, bad TOML does."""
    assert include_patterns(MAIN, "") == ("/etc/parsupd/units.d/*.toml",)
    assert include_patterns(MAIN, '[parsupd]\ninclude = []\nlog = "x"') == ()
    with pytest.raises(ConfigurationError, match="not TOML"):
        include_patterns(MAIN, "[")


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("/etc/a.toml", "b", "/etc/b"),
        ("/etc/a.toml", "/b/../c", "/c"),
        ("/etc/a.toml", "../../x", "/x"),
        ("etc/a.toml", "../jobs/x.py", "jobs/x.py"),
        ("etc/a.toml", "../../x", "../x"),
        ("a.toml", "x/./y", "x/y"),
        ("a.toml", ".", "."),
    ],
)
def test_paths_are_seen_from_the_file(source: str, path: str, expected: str) -> None:
    """As text: no file system is asked."""
    assert resolve(source, path) == expected


def test_lines_are_not_taken_from_inside_strings() -> None:
    """What looks like a key inside a string of several lines is none."""
    text = 'a = """\nb = 1\n[c]\n"""\nb = 2\n[d.e]\n"f g" = 1\n'
    assert key_lines(text) == {("a",): 1, ("b",): 5, ("d",): 6, ("d", "e"): 6, ("d", "e", "f g"): 7}


ENVIRONMENT = r"""
# comment
; another
A=plain
B = spaced value
C="double \"quoted\" \$x \n"
D='single \n'"and more"
E=
F=one \
two
G=a\ b
H="# not a comment"
"""


def test_environment_files_as_systemd_reads_them() -> None:
    """Comments, spaces around, both kinds of quotes, escapes, and continued lines."""
    assert parse_environment("/e", ENVIRONMENT) == {
        "A": "plain",
        "B": "spaced value",
        "C": r'double "quoted" $x \n',
        "D": r"single \nand more",
        "E": "",
        "F": "one two",
        "G": "a b",
        "H": "# not a comment",
    }


def test_environment_files_are_refused_with_all_places() -> None:
    """A line that assigns nothing, a bad name, an open quote; lines are counted through continuations."""
    with pytest.raises(ConfigurationError) as caught:
        parse_environment("/e", "A=1 \\\n 2\nnothing\n1X=3\nB='open\n")
    assert [str(problem) for problem in caught.value.problems] == [
        "/e:3: must be KEY=VALUE, not 'nothing'",
        "/e:4: must be KEY=VALUE, not '1X=3'",
        "/e:5: B: has a quote that is not closed",
    ]


@given(st.text(max_size=60))
def test_no_environment_file_breaks_the_reader(text: str) -> None:
    """Any text is read or refused."""
    with suppress(ConfigurationError):
        parse_environment("/e", text)


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(UNIT_KEYS)), VALUES)
def test_a_reader_accepts_or_refuses_and_never_breaks(key: str, value: Any) -> None:
    """Whatever TOML can hold: a reader raises BadValueError and nothing else."""
    with suppress(BadValueError):
        UNIT_KEYS[key](value)


def test_one_unit_is_read_beside_others() -> None:
    """As in a file: checked, with paths relative to the folder of its source, and with units that there are."""
    others = parse([("/m.toml", '[unit.db]\ntype = "simple"\nexec = ["x"]')], "/m.toml").units
    table = {"type": "simple", "exec": ["y"], "working_directory": "sub", "requires": ["db"]}
    spec = parse_one("mine", table, "/home/ann/(run)", others)
    assert (spec.name, spec.working_directory, spec.requires[0].unit) == ("mine", "/home/ann/sub", "db")
    for wrong, said in (
        ({"requires": ["dv"]}, "unit.mine.requires[0]: there is no unit 'dv'"),
        ({"exce": []}, "unit.mine.exce: unknown key; did you mean 'exec'?"),
        ({"requires": ["mine"]}, "units wait for each other in a cycle: mine -> mine"),
    ):
        with pytest.raises(ConfigurationError) as info:
            parse_one("mine", {**table, **wrong}, "/home/ann/(run)", others)
        assert said in str(info.value)


def test_edges_are_checked_between_units_of_different_times() -> None:
    """Whoever names a unit that has gone is told."""
    text = '[unit.db]\ntype = "simple"\nexec = ["x"]\n[unit.web]\ntype = "simple"\nexec = ["x"]\nrequires = ["db"]'
    units = parse([("/m.toml", text)], "/m.toml").units
    check_edges(units)
    with pytest.raises(ConfigurationError, match="there is no unit 'db'"):
        check_edges({"web": units["web"]})
