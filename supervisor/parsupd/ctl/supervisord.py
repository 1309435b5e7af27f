"""Unit files from a supervisord.conf, with what has no equivalent said key by key. Pure: text in, values out."""

import configparser
import itertools
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from parsupd.core.readers import BadValueError
from parsupd.core.unit_keys import UNIT_KEYS, UNIT_NAME

Options = Mapping[str, str]

PROGRAM, GROUP, LISTENER, FCGI = "program", "group", "eventlistener", "fcgi-program"

DEFAULT_PRIORITY = 999
SIZES = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


class Remark(NamedTuple):
    """Something that is not, or not quite, the same under parsupd."""

    section: str
    key: str
    """Empty when the section as a whole is meant."""
    message: str

    def __str__(self) -> str:
        return f"[{self.section}] {self.key}: {self.message}" if self.key else f"[{self.section}]: {self.message}"


class Translation(NamedTuple):
    """What a file says, as units by name, in the order of the file."""

    units: dict[str, dict[str, Any]]
    remarks: list[Remark]


class NotSupervisordError(ValueError):
    """The text cannot be read; the message says where and why."""


def sections(text: str, source: str) -> dict[str, dict[str, str]]:
    """The sections of a file, as supervisord reads them. Raises NotSupervisordError."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(" ;", "\t;", " #"), strict=False)
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise NotSupervisordError(str(error)) from None
    return {name: dict(parser[name]) for name in parser.sections()}


def includes(found: Mapping[str, Options]) -> list[str]:
    """The patterns of the files that are included."""
    return found.get("include", {}).get("files", "").split()


def translate(found: Mapping[str, Options], here: str, env: Mapping[str, str], host: str = "") -> Translation:
    """Translates the sections of all files.

    Args:
        found: Options by section.
        here: The folder of the main file, for `%(here)s`.
        env: Values for `%(ENV_x)s`.
        host: The name of this machine, for `%(host_node_name)s`.

    Raises:
        NotSupervisordError: A program has no command, or a value cannot be read.
    """
    return _Translator(found, here, env, host).run()


NO_PLACE = {
    "process_name": "instances are always named NAME@N",
    "startsecs": 'parsupd does not guess readiness from time: a program says it (type = "notify"), or a probe finds it',
    "stdout_capture_maxbytes": "there are no process events in the output; print or log as usual",
    "stderr_capture_maxbytes": "there are no process events in the output; print or log as usual",
    "stdout_events_enabled": "output is no event; read it with `parsupctl logs --follow --json`",
    "stderr_events_enabled": "output is no event; read it with `parsupctl logs --follow --json`",
    "serverurl": "a program finds parsupd's socket in PARSUP_SOCKET",
    "socket_owner": "sockets belong to the user of parsupd",
    "socket_mode": "a Unix socket has mode 0600",
    "socket_backlog": "the backlog is as long as the system allows",
    "buffer_size": "events are not delivered to programs",
    "result_handler": "events are not delivered to programs",
    "events": "follow them with `parsupctl events --follow --json`",
}
"""Keys of programs that nothing corresponds to, and what there is instead."""

DAEMON = {
    "logfile": "parsupd logs to the journal or its stderr: see `log` in parsupd.toml",
    "logfile_maxbytes": "parsupd has no log file of its own",
    "logfile_backups": "parsupd has no log file of its own",
    "loglevel": "the journal filters by priority: `parsupctl logs -p`",
    "pidfile": "a lock in the runtime directory is what counts; `parsupctl info` tells the pid",
    "nodaemon": "parsupd always stays in the foreground",
    "silent": "use --log",
    "minfds": "parsupd raises its own limit as far as the system allows",
    "minprocs": "set it where parsupd is started",
    "nocleanup": "old output files are left alone",
    "childlogdir": "output files are in log/ of the state directory (state_dir)",
    "user": "parsupd does not change its own user: start it as that one",
    "identifier": "a parsupd is known by its runtime directory",
    "strip_ansi": "output is kept as it was written",
}
SERVERS = {
    "unix_http_server": "parsupd listens on a Unix socket in its runtime directory, for its own user and root only",
    "inet_http_server": "parsupd does not listen on TCP for control; use ssh, or forward its socket",
    "supervisorctl": "parsupctl finds the socket by itself: --socket, --runtime-dir",
}


class _Translator:
    """One translation."""

    def __init__(self, found: Mapping[str, Options], here: str, env: Mapping[str, str], host: str) -> None:
        self._found = found
        self._names = {"here": here, "host_node_name": host}
        self._env = env
        self._units: dict[str, dict[str, Any]] = {}
        self._remarks: list[Remark] = []
        self._priorities: dict[str, int] = {}
        self._of_program: dict[str, list[str]] = {}
        self._section = ""

    def run(self) -> Translation:
        for section, options in self._found.items():
            self._section = section
            kind, _, name = section.partition(":")
            if kind in {PROGRAM, FCGI} and name:
                self._program(kind, name.strip(), options)
            elif kind == LISTENER:
                self._say("", "not imported: it would wait for events that nobody sends. " + NO_PLACE["events"])
            elif section == "supervisord":
                for key in options:
                    if key not in {"environment", "umask", "directory"}:
                        self._say(key, DAEMON.get(key, "nothing corresponds to it"))
            elif section in SERVERS:
                self._say("", SERVERS[section])
            elif kind not in {GROUP, "include"}:
                self._say("", "nothing corresponds to it")
        for section, options in self._found.items():
            self._section = section
            if section.startswith(f"{GROUP}:"):
                self._group(options)
        self._order()
        return Translation(self._units, self._remarks)

    def _say(self, key: str, message: str) -> None:
        self._remarks.append(Remark(self._section, key, message))

    # One program

    def _program(self, kind: str, name: str, options: Options) -> None:
        count = self._number("numprocs", options.get("numprocs", "1"))
        first = self._number("numprocs_start", options.get("numprocs_start", "0"))
        general = self._found.get("supervisord", {})
        # Where each process is told its number, each is a unit of its own: instances of one have one description.
        told = [
            key
            for key, value in options.items()
            if key not in {"process_name", "numprocs"} and "%(process_num)" in value
        ]
        if not told:
            self._unit(kind, name, options, general, {"instances": count} if count != 1 else {}, first)
            self._of_program[name] = [self._unit_name(name)]
            return
        self._say("numprocs", f"{count} units instead of instances: each has its own {', '.join(told)}")
        width = len(str(first + count - 1))
        self._of_program[name] = []
        for number in range(first, first + count):
            one = f"{name}-{number:0{width}d}"
            self._unit(kind, one, options, general, {}, number, program=name)
            self._of_program[name].append(self._unit_name(one))

    def _unit_name(self, name: str) -> str:
        fit = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]
        return fit if UNIT_NAME.fullmatch(fit) else f"unit-{fit}"[:128]

    def _unit(
        self,
        kind: str,
        name: str,
        options: Options,
        general: Options,
        table: dict[str, Any],
        number: int,
        program: str = "",
    ) -> None:
        unit = self._unit_name(name)
        if unit != name:
            self._say("", f"the unit is named {unit}")
        if unit in self._units:
            raise NotSupervisordError(f"[{self._section}]: there is a unit {unit} already")
        names = {
            "program_name": program or name,
            "group_name": program or name,
            "process_num": number,
            "numprocs": options.get("numprocs", "1"),
        }
        value = {key: self._expand(key, text, names) for key, text in options.items()}
        if "command" not in value:
            raise NotSupervisordError(f"[{self._section}] has no command")
        try:
            command = shlex.split(value["command"])
        except ValueError as error:
            raise NotSupervisordError(f"[{self._section}] command: {error}") from None
        found: dict[str, Any] = {"type": "simple", "exec": command, **table}
        self._units[unit] = found
        self._priorities[unit] = self._number("priority", value.get("priority", str(DEFAULT_PRIORITY)))
        self._life(value, found)
        self._output(value, found)
        self._surroundings(value, {key: self._expand(key, text, names) for key, text in general.items()}, found)
        if kind == FCGI:
            self._socket(value, found)
        for key, text in value.items():
            if key in NO_PLACE:
                if (key, text.strip()) != ("startsecs", "0"):
                    self._say(key, NO_PLACE[key])
            elif key not in KNOWN:
                self._say(key, "unknown, or nothing corresponds to it")

    def _set(self, found: dict[str, Any], key: str, value: Any, *, for_key: str) -> None:
        """Sets a key of the unit, where this parsupd has it."""
        if key not in UNIT_KEYS:
            self._say(for_key, f"this parsupd has no key {key!r} yet")
            return
        try:
            UNIT_KEYS[key](value)
        except BadValueError as error:
            self._say(for_key, f"not taken over: {key} {error}")
        else:
            found[key] = value

    def _life(self, value: Options, found: dict[str, Any]) -> None:
        if "autostart" in value and not self._yes("autostart", value["autostart"]):
            found["enabled"] = False
        if "autorestart" in value:
            word = value["autorestart"].strip().lower()
            if word == "unexpected":
                found["restart"] = "on-failure"
            else:
                found["restart"] = "always" if self._yes("autorestart", word) else "no"
        codes = [self._number("exitcodes", code) for code in value.get("exitcodes", "0").split(",")]
        others = [code for code in codes if code != 0]
        if others:
            self._set(found, "success_exit_status", others, for_key="exitcodes")
        if 0 not in codes:
            self._say("exitcodes", "0 always counts as success")
        if "startretries" in value:
            # supervisord waits a second longer after each failed start.
            tries = self._number("startretries", value["startretries"])
            starts_s = self._number("startsecs", value.get("startsecs", "1"))
            found["start_limit_burst"] = tries + 1
            found["start_limit_interval_sec"] = tries * (tries + 1) // 2 + (tries + 1) * starts_s + 10
            if tries:
                found |= {"restart_sec": 1, "restart_steps": min(tries, 1000), "restart_max_delay_sec": max(1, tries)}
        if "stopsignal" in value:
            word = value["stopsignal"].strip().upper()
            found["kill_signal"] = word if word.startswith("SIG") else f"SIG{word}"
        if "stopwaitsecs" in value:
            found["timeout_stop_sec"] = self._number("stopwaitsecs", value["stopwaitsecs"])
        stops, kills = (self._yes(key, value.get(key, "false")) for key in ("stopasgroup", "killasgroup"))
        if kills and not stops:
            self._set(found, "kill_mode", "mixed", for_key="killasgroup")
        elif not stops and {"stopasgroup", "killasgroup"} & value.keys():
            self._say("stopasgroup", "the signals go to the whole process group, so that nothing of it is left")

    def _output(self, value: Options, found: dict[str, Any]) -> None:
        found["stdout"] = self._place("stdout", value)
        if self._yes("redirect_stderr", value.get("redirect_stderr", "false")):
            if "stderr_logfile" in value:
                self._say("stderr_logfile", "not used, as redirect_stderr says: both go where stdout goes")
        elif (place := self._place("stderr", value)) != found["stdout"]:
            found["stderr"] = place
        elif place == "file" and "stderr_logfile" in value:
            self._say("stderr_logfile", "both streams go into one file; give stderr an append:/path of its own for two")
        sizes, backups = value.get("stdout_logfile_maxbytes"), value.get("stdout_logfile_backups")
        if sizes is not None and (size := self._size("stdout_logfile_maxbytes", sizes)):
            self._set(found, "log_rotate_size", size, for_key="stdout_logfile_maxbytes")
            if backups is not None:
                total = size * (self._number("stdout_logfile_backups", backups) + 1)
                self._set(found, "log_total_size", max(total, 2 * size), for_key="stdout_logfile_backups")
        elif backups is not None:
            self._say("stdout_logfile_backups", "files are bounded by their total size")
        for key in ("stderr_logfile_maxbytes", "stderr_logfile_backups"):
            if key in value:
                self._say(key, "both streams are rotated alike")

    def _place(self, stream: str, value: Options) -> str:
        if self._yes(f"{stream}_syslog", value.get(f"{stream}_syslog", "false")):
            return "journal"
        path = value.get(f"{stream}_logfile", "AUTO").strip()
        if path.lower() in {"auto", "none", "syslog"}:
            return {"auto": "file", "none": "null", "syslog": "journal"}[path.lower()]
        if path in {"/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2"}:
            return "inherit"
        return f"append:{path}"

    def _surroundings(self, value: Options, general: Options, found: dict[str, Any]) -> None:
        environment = {
            **self._variables(general.get("environment", "")),
            **self._variables(value.get("environment", "")),
        }
        if environment:
            found["environment"] = environment
        if directory := value.get("directory", general.get("directory", "")):
            found["working_directory"] = directory
        if mask := value.get("umask", general.get("umask", "")):
            found["umask"] = mask.strip()
        if "user" in value:
            self._set(found, "user", value["user"].strip(), for_key="user")

    def _socket(self, value: Options, found: dict[str, Any]) -> None:
        text = value.get("socket", "")
        if text.startswith("tcp://"):
            found["sockets"] = [text.removeprefix("tcp://")]
        elif text.startswith("unix://"):
            found["sockets"] = [text.removeprefix("unix://")]
        else:
            raise NotSupervisordError(
                f"[{self._section}] socket: must be tcp://HOST:PORT or unix:///PATH, not {text!r}"
            )
        self._say("socket", "the program finds it as descriptor 3 (LISTEN_FDS), not as 0")

    # Several of them

    def _group(self, options: Options) -> None:
        members = [one.strip() for one in options.get("programs", "").split(",") if one.strip()]
        self._say(
            "", f"no unit: start and stop {' '.join(members)} by name, or let a unit that requires them stand for it"
        )
        for program in members:
            if program not in self._of_program:
                raise NotSupervisordError(f"[{self._section}] programs: there is no program {program!r}")
            if "priority" in options:
                for unit in self._of_program[program]:
                    self._priorities[unit] = self._number("priority", options["priority"])
        for key in options:
            if key not in {"programs", "priority"}:
                self._say(key, "unknown, or nothing corresponds to it")

    def _order(self) -> None:
        """Those with a lower number start first and stop last; here they are waited for, too."""
        numbers = sorted(set(self._priorities.values()))
        for before, number in itertools.pairwise(numbers):
            first = [unit for unit, priority in self._priorities.items() if priority == before]
            for unit, priority in self._priorities.items():
                if priority == number:
                    self._units[unit]["after"] = first

    # Values

    def _expand(self, key: str, text: str, names: Mapping[str, Any]) -> str:
        known = {**self._names, **names}

        def replaced(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            name, form = match[1], match[2]
            if name.startswith("ENV_"):
                variable = name.removeprefix("ENV_")
                if variable not in self._env:
                    raise NotSupervisordError(
                        f"[{self._section}] {key}: the variable {variable} is not set: set it for the import"
                    )
                return self._env[variable]
            if name not in known:
                raise NotSupervisordError(f"[{self._section}] {key}: there is no %({name})s")
            return f"%{form}" % (int(known[name]) if form[-1] in "di" else known[name])

        return re.sub(r"%%|%\((\w+)\)(0?\d*[sdi])", replaced, text)

    def _variables(self, text: str) -> dict[str, str]:
        """`A="x,y",B=z` as a table. Raises NotSupervisordError."""
        found, at = {}, 0
        entry = re.compile(r"""\s*(\w+)\s*=\s*("((?:[^"\\]|\\.)*)"|'([^']*)'|[^,\n]*)\s*(?:[,\n]\s*|$)""")
        while at < len(text.rstrip().rstrip(",")):
            match = entry.match(text, at)
            if match is None:
                raise NotSupervisordError(
                    f"[{self._section}] environment: cannot be read from {text[at : at + 20]!r} on"
                )
            double, single, plain = match[3], match[4], match[2]
            if double is not None:
                found[match[1]] = re.sub(r"\\(.)", r"\1", double)
            else:
                found[match[1]] = single if single is not None else plain.strip()
            at = match.end()
        return found

    def _number(self, key: str, text: str) -> int:
        try:
            return int(text.strip())
        except ValueError:
            raise NotSupervisordError(f"[{self._section}] {key}: must be a whole number, not {text!r}") from None

    def _yes(self, key: str, text: str) -> bool:
        word = text.strip().lower()
        if word in {"true", "yes", "on", "1"}:
            return True
        if word in {"false", "no", "off", "0"}:
            return False
        raise NotSupervisordError(f"[{self._section}] {key}: must be true or false, not {text!r}")

    def _size(self, key: str, text: str) -> int:
        word = text.strip().upper()
        factor = SIZES.get(word[-2:], 1)
        return self._number(key, word[:-2] if word[-2:] in SIZES else word) * factor


KNOWN = frozenset(
    {
        "command", "numprocs", "numprocs_start", "priority", "autostart", "autorestart", "exitcodes", "startretries",
        "stopsignal", "stopwaitsecs", "stopasgroup", "killasgroup", "redirect_stderr", "stdout_logfile",
        "stdout_logfile_maxbytes", "stdout_logfile_backups", "stdout_syslog", "stderr_logfile",
        "stderr_logfile_maxbytes", "stderr_logfile_backups", "stderr_syslog", "environment", "directory", "umask",
        "user", "socket",
    }
)  # fmt: skip
"""Keys of programs that are translated, or spoken about where they are."""
