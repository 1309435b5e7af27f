"""What is shown, as text: tables, one instance's status, the story of `why`, durations. Pure: `now` is given."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parsupd.core import toml_text
from parsupd.shell.usage import Usage

Info = Mapping[str, Any]
"""One instance as the daemon describes it."""

Paint = Callable[[str, str], str]
"""Colours a text by a name of `COLOURS`, or leaves it as it is."""

KEYS = ("name", "unit", "type", "state", "sub_state", "pid", "generation", "restarts", "since", "uri", "status_text")
"""The keys of `list --json`: promised to scripts."""

COLOURS = {"active": "green", "failed": "red", "activating": "yellow", "deactivating": "yellow", "inactive": "white"}
DOTS = {"active": "●", "failed": "✗", "activating": "●", "deactivating": "●", "inactive": "○"}


HELD_BY = {
    "cgroup": "held by the kernel",
    "rlimit": "held by the kernel for its user",
    "watched": "watched by parsupd",
}
"""Who holds a limit, in the words of `status`."""


NOTHING = Usage()


def plain(text: str, _colour: str) -> str:
    """The Paint of a pipe."""
    return text


def duration(seconds: float) -> str:
    """At most two units, as systemd writes it: `5min 3s`, `2 days 4h`, `120ms`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    left, parts = round(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            name = (" day" if count == 1 else " days") if unit == "d" else unit
            parts.append(f"{count}{name}")
        if parts and unit != "s" and not count and len(parts) == 1:
            break  # `2 days`, not `2 days 5min`
    return " ".join(parts[:2])


def ago(at: float | None, now: float) -> str:
    if at is None:
        return "-"
    return f"{duration(now - at)} ago" if now >= at else f"in {duration(at - now)}"


def instant(at: float) -> str:
    """Local time with its zone."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def state(info: Info) -> str:
    return f"{info['state']} ({info['sub_state']})"


def align(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a pipe: two blanks between them, none at the ends of lines."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headers, *rows))
    return "\n".join(line.rstrip() for line in lines)


LIST_HEADERS = ("NAME", "TYPE", "STATE", "PID", "GENERATION", "RESTARTS", "SINCE")


def list_row(info: Info, now: float) -> tuple[str, ...]:
    pid = str(info["pid"] or "-")
    counts = str(info["generation"]), str(info["restarts"])
    return (info["name"], info["type"], state(info), pid, *counts, ago(info["since"], now))


STATUS_HEADERS = ("NAME", "STATE", "PID", "SINCE", "REASON")


def status_row(info: Info, now: float) -> tuple[str, ...]:
    return info["name"], state(info), str(info["pid"] or "-"), ago(info["since"], now), info["reason"]


NAME_HEADERS = ("NAME", "URI", "METADATA")


def name_row(entry: Info) -> tuple[str, ...]:
    return entry["name"], entry["uri"], " ".join(entry["metadata"])


def status(info: Info, now: float, paint: Paint = plain, unit: Info | None = None, usage: Usage = NOTHING) -> str:
    """One instance, as systemctl shows a service: with where its `unit` is described, and what its processes take."""
    colour = info["state"]
    title = f"{info['name']} - {info['description']}" if info["description"] else info["name"]
    since = f" since {instant(info['since'])}; {ago(info['since'], now)}" if info["since"] is not None else ""
    lines = [
        ("Loaded", _loaded(unit) if unit is not None else ""),
        ("Type", info["type"]),
        ("Active", paint(state(info), colour) + since),
        ("Reason", info["reason"]),
        ("Target", info["target"]),
        ("Main PID", str(info["pid"] or "")),
        ("Tasks", str(usage.tasks) if usage.processes else ""),
        ("Memory", size(usage.rss) if usage.processes else ""),
        ("CPU", duration(usage.cpu_s) if usage.processes else ""),
        ("Run", f"{info['generation']} ({plural(info['restarts'], 'restart')})" if info["generation"] else ""),
        ("URI", info["uri"]),
        ("Status", info["status_text"]),
        ("Limits", ", ".join(f"{key} {HELD_BY[holder]}" for key, holder in info["limits"].items())),
    ]
    shown = [f"{label:>10}: {value}" for label, value in lines if value]
    return "\n".join([f"{paint(DOTS.get(colour, '●'), colour)} {title}", *shown])


def _loaded(unit: Info) -> str:
    enabled = "enabled" if unit["keys"]["enabled"] else "disabled"
    return f"{unit['source']} ({'transient' if unit['transient'] else enabled})"


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def why(info: Info, now: float, paint: Paint = plain) -> str:
    """What happened to one instance, newest run first."""
    lines = [f"{info['name']} is {paint(state(info), info['state'])}: {info['reason']}"]
    if info["next_attempt_at"] is not None:
        lines.append(f"  next attempt {ago(info['next_attempt_at'], now)}")
    lines += [line for run in reversed(info["incarnations"]) for line in _run(run, now)]
    if info["story"]:
        lines.append("  what happened:")
        lines += [f"    {ago(entry['at'], now):>16}  {_event(entry)}" for entry in info["story"]]
    return "\n".join(lines)


def _event(entry: Info) -> str:
    """The kind of an event and what was decided; its other details are in the JSON."""
    return f"{entry['event'].partition('(')[0]}: {entry['reason']}"


def _run(run: Info, now: float) -> list[str]:
    lasted = duration(run["ended_at"] - run["started_at"])
    ready = f"ready after {duration(run['ready_at'] - run['started_at'])}" if run["ready_at"] else "never ready"
    pid = f"pid {run['pid']}" if run["pid"] else "no process"
    lines = [
        f"  run {run['generation']} ({pid}) {run['cause']}, {ago(run['ended_at'], now)}, after {lasted}; {ready}",
        f"    {'restarted' if run['restarted'] else 'not restarted'}: {run['reason']}",
    ]
    if run["next_attempt_at"] is not None:
        lines.append(f"    next attempt: {instant(run['next_attempt_at'])}")
    if run["oom_killed"]:
        lines.append("    the kernel has killed processes of it for want of memory")
    log = [line["message"] for line in run.get("log", ())]
    for title, part in (
        ("its last lines on stderr", run["lines"]),
        ("its stack when it was asked by the watchdog", run["stack"]),
        ("its last lines", log),
    ):
        if part:
            lines.append(f"    {title}:")
            lines += [f"      {line}" for text in part for line in text.split("\n")]
    return lines


COMMON = ("number", "at", "event", "unit", "instance")
"""What all events have."""


def event(info: Info, paint: Paint = plain) -> str:
    """One line: number, time, instance, what happened and why."""
    number, what = f"{info['number']:>8}", info["event"]
    if what == "gap":
        return paint(f"{number}  {plural(info['lost'], 'event')} up to here not kept any more", "failed")
    at = time.strftime("%b %d %H:%M:%S", time.localtime(info["at"]))
    rest = {key: value for key, value in info.items() if key not in COMMON and key != "generation"}
    match what:
        case "unit_changed":
            text = f"{rest['old']} -> {paint(rest['new'], _SUB_COLOURS.get(rest['new'], ''))}: {rest['reason']}"
        case "unit_ended":
            text = f"{rest['cause']}; {'restarted' if rest['restart'] else 'not restarted'}: {rest['reason']}"
        case "unit_unkillable":
            text = paint(f"cannot be killed (pid {rest['pid']}): {rest['reason']}", "failed")
        case "unit_removed":
            text = "removed"
        case _:
            text = " ".join([what, *(f"{key}={value}" for key, value in rest.items())])
    return f"{number}  {at}  {info['instance'] or 'parsupd':<14} {text}"


_SUB_COLOURS = {
    "running": "active",
    "exited": "active",
    "failed": "failed",
    "backoff": "activating",
    "unready": "activating",
    "killing": "failed",
}


def only_listed(info: Info) -> dict[str, Any]:
    """One object of `list --json`."""
    return {key: info[key] for key in KEYS}


def show(found: Info, now: float) -> str:
    """A unit file with every key; those that no line is needed for are comments."""
    lines = [f"# {found['source']}", f"[unit.{toml_text.key(found['unit'])}]"]
    for key, value in sorted(found["keys"].items(), key=lambda item: item[0] in found["defaults"]):
        if value is None:
            text = f"# {key} is not set"
        else:
            text = f"{key} = {'inf' if value == 'inf' and key.endswith('_sec') else toml_text.value(value)}"
        lines.append(f"# {text}" if key in found["defaults"] and value is not None else text)
    for info in found["instances"]:
        since = "" if info["since"] is None else f" since {ago(info['since'], now)}"
        lines.append(f"# {info['name']}: {state(info)}{since}")
    return "\n".join(lines)


LEAK_HEADERS = ("PID", "INSTANCE", "RUN", "SINCE", "COMMAND")


def leak_row(row: Info) -> tuple[str, ...]:
    return (
        str(row["pid"]),
        row["instance"] or "-",
        str(row["generation"]),
        instant(row["since"]),
        " ".join(row["command"]),
    )


TOP_HEADERS = ("NAME", "STATE", "PID", "CPU%", "RSS", "RESTARTS", "CALLS")


def top_row(row: Info) -> tuple[str, ...]:
    calls = "-" if row["calls"] is None else str(row["calls"])
    percent = f"{row['cpu_percent']:.1f}" if row["processes"] else "-"
    taken = size(row["rss"]) if row["processes"] else "-"
    return row["name"], row["state"], str(row["pid"] or "-"), percent, taken, str(row["restarts"]), calls


def size(count: int) -> str:
    """Bytes, with three digits or so: `1.4M`."""
    number = float(count)
    for unit in ("B", "K", "M", "G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == "B" or number >= 100 else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}T"


PLAN_HEADERS = ("UNIT", "ACTION", "INSTANCES", "WHY")


def plan_row(unit: Info) -> tuple[str, ...]:
    """What happens to one unit: `+` starts, `-` stops and forgets, `~` restarts an instance."""
    moves = [
        f"{sign}{name.rpartition('@')[2]}"
        for sign, names in (("+", unit["starts"]), ("-", unit["stops"]), ("~", unit["restarts"]))
        for name in names
    ]
    why = "; ".join([*map(key_change, unit["keys"]), *([unit["reason"]] if unit["reason"] else [])])
    return unit["unit"], unit["action"], " ".join(moves) or "-", why or "-"


def key_change(change: Info) -> str:
    """`restart_sec: 0.1 -> 2`."""
    return f"{change['key']}: {_value(change['old'])} -> {_value(change['new'])}"


def _value(value: Any) -> str:
    match value:
        case None:
            return "(unset)"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case _:
            return str(value)


def plan_notes(plan: Info) -> list[str]:
    """What is said below the table."""
    untouched = plural(len(plan["untouched"]), "unit")
    notes = [f"{untouched} untouched" if plan["units"] or plan["groups"] else f"nothing to change; {untouched}"]
    if plan["groups"]:
        notes.append(f"groups: {'; '.join(map(key_change, plan['groups']))}")
    waiting = [key_change(change) for change in plan["daemon"] if not change["live"]]
    if waiting:
        notes.append(f"counts when parsupd is restarted: {'; '.join(waiting)}")
    return notes
