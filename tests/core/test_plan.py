"""What a new configuration would do, from the schema's own table."""

import dataclasses
from typing import Any

import pytest

from parsupd.core.plan import Action, Plan, Present, differences, plan
from parsupd.core.unit_keys import DAEMON_KEYS, UNIT_KEYS, Live, field_of, live_part
from parsupd.core.unitfile import parse
from parsupd.core.units import Configuration, DaemonSettings, InstanceName, LogFormat, SubState, UnitSpec

RUNNING, FAILED, DOWN = Present(True, SubState.RUNNING), Present(True, SubState.FAILED), Present(False, SubState.DEAD)

# Each key, and whether a change of it needs no restart: written out, so that nobody makes a key live by accident.
LIVE_KEYS = {
    "description", "instances", "enabled", "exit_with", "requires", "wants", "after", "binds_to", "part_of",
    "conflicts", "on_failure", "restart_storm_burst", "restart_storm_interval_sec", "restart", "restart_sec",
    "restart_steps", "restart_max_delay_sec", "restart_reset_after_sec", "start_limit_burst",
    "start_limit_interval_sec", "timeout_start_sec", "timeout_stop_sec", "kill_signal", "include",
    "schedule", "schedule_every_sec", "schedule_jitter_sec", "schedule_overlap",
    "log_format", "log_rotate_size", "log_rotate_sec", "log_total_size", "log_compress", "log_full_policy", "log_block_sec",
    "kill_mode", "send_sigkill", "start_limit_action", "success_exit_status", "restart_prevent_exit_status",
    "restart_force_exit_status", "remain_after_exit", "runtime_max_sec", "runtime_max_spread_sec", "notify_access",
    "exec_start_pre", "exec_start_post", "exec_reload", "exec_stop", "exec_stop_post", "memory_max", "tasks_max",
    "readiness", "liveness",
}  # fmt: skip


def configuration(text: str, *, path: str = "/etc/p.toml", daemon: DaemonSettings | None = None) -> Configuration:
    """Units of type simple, from `[unit.NAME]` tables that need not say so."""
    lines = [
        f'{line}\ntype = "simple"\nexec = ["x"]' if line.startswith("[unit.") else line for line in text.split("\n")
    ]
    found = parse([(path, "\n".join(lines))], "/etc/main.toml")
    return dataclasses.replace(found, daemon=daemon or found.daemon)


def planned(old: str, new: str, **present: Present) -> Plan:
    """The plan from one text to another; instances run unless `present` says how those of a unit are."""
    before = configuration(old)
    states = {
        instance: present.get(name, RUNNING) for name, spec in before.units.items() for instance in spec.instance_names
    }
    return plan(before, configuration(new), states)


def short(found: Plan) -> dict[str, tuple[str, str]]:
    """`{unit: (action, "+instances started -stopped ~restarted")}` of what is touched."""
    return {
        each.unit: (
            each.action.value,
            " ".join(
                f"{sign}{name}"
                for sign, names in (("+", each.starts), ("-", each.stops), ("~", each.restarts))
                for name in names
            ),
        )
        for each in found.touched
    }


def test_which_keys_are_live() -> None:
    """Exactly these; every other key, and any that is added without a thought, needs a restart."""
    found = {key for key, reader in {**UNIT_KEYS, **DAEMON_KEYS}.items() if isinstance(reader, Live)}
    assert found == LIVE_KEYS


def test_every_field_is_compared() -> None:
    """Each field of a unit and of the daemon has its key, so that no difference goes unseen."""
    fields = {field.name for field in dataclasses.fields(UnitSpec)} - {"name", "source", "transient"}
    assert {field_of(key) for key in UNIT_KEYS} == fields
    assert {field_of(key) for key in DAEMON_KEYS} == {field.name for field in dataclasses.fields(DaemonSettings)}


OLD = "[unit.a]\n[unit.b]\nrequires = ['a']\n[unit.c]\ninstances = 2"

BY_HAND = "[unit.a]\nenabled = false\n[unit.b]\nrequires = ['a']\nenabled = false\n[unit.e]\nbinds_to = ['a']\nenabled = false"

CASES: dict[str, tuple[str, str, dict[str, Present], dict[str, tuple[str, str]]]] = {
    "nothing": (OLD, OLD, {}, {}),
    "another order of units and keys": (OLD, "[unit.c]\ninstances = 2\n[unit.b]\nrequires = ['a']\n[unit.a]", {}, {}),
    "a default written out": (OLD, OLD.replace("[unit.a]", "[unit.a]\nrestart = 'on-failure'"), {}, {}),
    "added": (OLD, OLD + "\n[unit.d]\ninstances = 2", {}, {"d": ("add", "+d@1 +d@2")}),
    "added, not enabled": (OLD, OLD + "\n[unit.d]\nenabled = false", {}, {"d": ("add", "")}),
    "added with what it needs": (
        OLD + "\n[unit.e]\nenabled = false",
        OLD + "\n[unit.e]\nenabled = false\n[unit.f]\nenabled = false\n[unit.d]\nrequires = ['f']\nwants = ['e', 'a']",
        {"e": DOWN},
        {"d": ("add", "+d@1"), "e": ("start", "+e@1"), "f": ("add", "+f@1")},
    ),
    "removed": (OLD, "[unit.a]", {}, {"b": ("remove", "-b@1"), "c": ("remove", "-c@1 -c@2")}),
    "live": (OLD, OLD + "\nrestart_sec = 9", {}, {"c": ("change", "")}),
    "restarted": (OLD, OLD + "\numask = '077'", {}, {"c": ("restart", "~c@1 ~c@2")}),
    "restarted, failed before": (OLD, OLD + "\numask = '077'", {"c": FAILED}, {"c": ("restart", "~c@1 ~c@2")}),
    "down by request": (OLD, OLD + "\numask = '077'", {"c": DOWN}, {"c": ("change", "")}),
    "restarted with what requires it": (
        OLD,
        OLD.replace("[unit.a]", "[unit.a]\numask = '077'"),
        {},
        {"a": ("restart", "~a@1"), "b": ("restart", "~b@1")},
    ),
    "restarted with what failed for it": (
        OLD,
        OLD.replace("[unit.a]", "[unit.a]\numask = '077'"),
        {"a": FAILED, "b": FAILED},
        {"a": ("restart", "~a@1"), "b": ("restart", "~b@1")},
    ),
    "restarted without what is done": (
        OLD,
        OLD.replace("[unit.a]", "[unit.a]\numask = '077'"),
        {"b": Present(True, SubState.EXITED)},
        {"a": ("restart", "~a@1")},
    ),
    "more instances": (OLD, OLD.replace("= 2", "= 4"), {}, {"c": ("scale", "+c@3 +c@4")}),
    "more instances of what is down": (OLD, OLD.replace("= 2", "= 3"), {"c": DOWN}, {"c": ("scale", "")}),
    "instances where there were none": (
        OLD.replace("= 2", "= 0"), OLD.replace("= 2", "= 1"), {}, {"c": ("scale", "+c@1")}
    ),
    "fewer instances": (OLD, OLD.replace("= 2", "= 1"), {}, {"c": ("scale", "-c@2")}),
    "no instances": (OLD, OLD.replace("= 2", "= 0"), {}, {"c": ("scale", "-c@1 -c@2")}),
    "fewer, and restarted": (
        OLD, OLD.replace("= 2", "= 1\numask = '077'"), {}, {"c": ("restart", "-c@2 ~c@1")}
    ),
    "enabled": (
        "[unit.a]\nenabled = false", "[unit.a]\nenabled = true", {"a": DOWN}, {"a": ("start", "+a@1")}
    ),
    "enabled, and up already": ("[unit.a]\nenabled = false", "[unit.a]", {}, {"a": ("change", "")}),
    "not enabled any more": ("[unit.a]", "[unit.a]\nenabled = false", {}, {"a": ("change", "")}),
    "a new requirement": (
        "[unit.a]\n[unit.b]\nenabled = false",
        "[unit.a]\nrequires = ['b']\n[unit.b]\nenabled = false",
        {"b": DOWN},
        {"a": ("change", ""), "b": ("start", "+b@1")},
    ),
    "a new requirement of what is down": (
        "[unit.a]\n[unit.b]", "[unit.a]\nrequires = ['b']\n[unit.b]", {"a": DOWN, "b": DOWN}, {"a": ("change", "")}
    ),
    "a start stops what conflicts": (
        BY_HAND, BY_HAND + "\n[unit.c]\nconflicts = ['a']",
        {}, {"a": ("stop", "-a@1"), "b": ("stop", "-b@1"), "e": ("stop", "-e@1"), "c": ("add", "+c@1")},
    ),
    "restarted with what is bound to it or part of it": (
        "[unit.a]\n[unit.b]\nbinds_to = ['a']\n[unit.c]\npart_of = ['b']",
        "[unit.a]\numask = '077'\n[unit.b]\nbinds_to = ['a']\n[unit.c]\npart_of = ['b']",
        {}, {"a": ("restart", "~a@1"), "b": ("restart", "~b@1"), "c": ("restart", "~c@1")},
    ),
    "what was wanted and stopped stays so": (
        "[unit.a]\nwants = ['b']\n[unit.b]", "[unit.a]\nwants = ['b']\ndescription = 'x'\n[unit.b]", {"b": DOWN},
        {"a": ("change", "")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_happens_to_whom(name: str) -> None:
    """Each kind of difference, with the instances that it moves."""
    old, new, present, expected = CASES[name]
    assert short(planned(old, new, **present)) == expected


def test_every_action_has_a_case() -> None:
    """The cases above show all of them."""
    shown = {action for _, _, _, expected in CASES.values() for action, _ in expected.values()}
    assert shown | {Action.UNTOUCHED.value} == {action.value for action in Action}


def test_a_file_may_be_renamed() -> None:
    """The name of the file is no difference, as long as no path in it was relative to another folder."""
    old, new = configuration(OLD, path="/etc/a.toml"), configuration(OLD, path="/etc/b.toml")
    states = {instance: RUNNING for spec in old.units.values() for instance in spec.instance_names}
    assert plan(old, new, states).is_empty


KEY_CASES: dict[str, tuple[str, str, list[tuple[str, Any, Any, bool]]]] = {
    "an enum": ("", "restart = 'always'", [("restart", "on-failure", "always", True)]),
    "seconds": ("restart_sec = 1", "restart_sec = 2.5", [("restart_sec", 1.0, 2.5, True)]),
    "no timeout": ("", "timeout_stop_sec = inf", [("timeout_stop_sec", 10.0, "inf", True)]),
    "a signal": ("kill_signal = 'INT'", "kill_signal = 'SIGHUP'", [("kill_signal", "SIGINT", "SIGHUP", True)]),
    "a command": ("exec_stop = ['x', 'y']", "exec_stop = [{ exec = ['z'], timeout_sec = 3, ignore_failure = true }]",
                  [("exec_stop", [{"exec": ["x", "y"]}], [{"exec": ["z"], "timeout_sec": 3.0, "ignore_failure": True}],
                    True)]),
    "a probe": ("", "readiness = { tcp = '127.0.0.1:80', interval_sec = 3 }",
                [("readiness", None, {"tcp": "127.0.0.1:80", "interval_sec": 3.0}, True)]),
    "exit statuses": ("", "success_exit_status = [3, 'KILL']",
                      [("success_exit_status", [], [3, "SIGKILL"], True)]),
    "an output": ("stdout = 'null'\nstderr = 'null'", "stdout = 'append:x'\nstderr = 'null'",
                  [("stdout", "null", "append:/etc/x", False)]),
    "octal": ("", "umask = '027'", [("umask", None, "027", False)]),
    "names": ("", "after = ['o']", [("after", [], ["o"], True)]),
    "variables one by one": (
        "environment = { A = '1', B = '2' }",
        "environment = { B = '3', C = '4' }",
        [("environment.A", "1", None, False), ("environment.B", "2", "3", False), ("environment.C", None, "4", False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEY_CASES)
def test_values_are_shown_as_a_unit_file_has_them(name: str) -> None:
    """Each kind of value, old and new, and whether it counts at once."""
    old, new, expected = KEY_CASES[name]
    before, after = (configuration(f"[unit.u]\n{text}\n[unit.o]").units["u"] for text in (old, new))
    assert [dataclasses.astuple(change) for change in differences(before, after)] == expected


def test_only_live_keys_come_to_what_runs() -> None:
    """The others stay as the process was started with."""
    old = configuration("[unit.u]\numask = '022'\nrestart_sec = 1").units["u"]
    new = configuration("[unit.u]\numask = '077'\nrestart_sec = 2").units["u"]
    assert (live_part(old, new).umask, live_part(old, new).restart_s) == (0o022, 2.0)


def test_settings_of_the_daemon_wait_for_its_next_start() -> None:
    """They are told with each plan until then; `include` counts at once."""
    old = configuration("", daemon=DaemonSettings(runtime_dir="/a", include=("x",)))
    new = configuration("", daemon=DaemonSettings(runtime_dir="/b", log=LogFormat.JSON, include=("y",)))
    found = [(change.key, change.old, change.new, change.live) for change in plan(old, new, {}).daemon]
    assert found == [
        ("runtime_dir", "/a", "/b", False),
        ("log", "auto", "json", False),
        ("include", ["x"], ["y"], True),
    ]


def test_groups_are_compared() -> None:
    """A new one, a changed one, one that is gone; what it does to the start limits of its units is told with them."""
    units = "[unit.a]\n[unit.b]\n"
    one, two = "[group.g]\nunits = ['a']", "[group.g]\nunits = ['a', 'b']\nstrategy = 'one_for_all'\nperiod_sec = 3"

    def groups(old: str, new: str) -> list[tuple[str, Any, Any, bool]]:
        return [dataclasses.astuple(change) for change in planned(units + old, units + new).groups]

    assert groups("", one) == [("g.units", None, ["a"], True)]
    assert groups(one, two) == [
        ("g.units", ["a"], ["a", "b"], True),
        ("g.strategy", "one_for_one", "one_for_all", True),
        ("g.period_sec", 10.0, 3.0, True),
    ]
    assert groups(two, "") == [("g.units", ["a", "b"], None, True)]
    (change,) = planned(units, units + one).touched
    assert [(key.key, key.new) for key in change.keys] == [("start_limit_burst", 0)]


def test_reasons() -> None:
    """Why a unit is touched that has not changed, and why one that has is not."""
    new = "[unit.a]\numask = '077'\n[unit.b]\nrequires = ['a']\n[unit.c]\numask = '077'"
    found = {each.unit: each.why for each in planned(OLD.replace("\ninstances = 2", ""), new, c=DOWN).touched}
    assert found == {
        "a": "the configuration has changed: umask",
        "b": "it requires a, which is restarted",
        "c": "it is down: this counts when it is started",
    }


def test_a_plan_is_quick_with_many_units() -> None:
    """Thousands of units in chains and stars: the work grows with edges, not with their square."""
    text = "[unit.hub]\n" + "\n".join(f"[unit.u{n}]\nrequires = ['hub']" for n in range(2000))
    assert len(planned(text, text.replace("[unit.hub]", "[unit.hub]\numask = '077'")).touched) == 2001
    assert InstanceName("u1999", 1) in planned(text, text + "\numask = '077'").touched[0].restarts
