"""What a supervisord.conf becomes, and what is said about the rest. Values only."""

from typing import Any

import pytest

from parsupd.core import toml_text, unitfile
from parsupd.core.unit_keys import UNIT_KEYS
from parsupd.ctl.supervisord import NotSupervisordError, includes, sections, translate

ENV = {"HOME": "/home/ann"}


def units(text: str) -> dict[str, dict[str, Any]]:
    return translate(sections(text, "s.conf"), "/srv", ENV, "host").units


def remarks(text: str) -> list[str]:
    return [str(remark) for remark in translate(sections(text, "s.conf"), "/srv", ENV, "host").remarks]


def program(*lines: str) -> dict[str, Any]:
    (unit,) = units("\n".join(["[program:web]", "command=/bin/web", *lines])).values()
    return unit


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["command=/bin/web --name 'a b'"], {"exec": ["/bin/web", "--name", "a b"]}),
        (["command=%(here)s/web --home %(ENV_HOME)s %(program_name)s 100%%"], {"exec": ["/srv/web", "--home", "/home/ann", "web", "100%"]}),
        (["command=web  ; a comment"], {"exec": ["web"]}),
        (["autostart=false"], {"enabled": False}),
        (["autorestart=true"], {"restart": "always"}),
        (["autorestart=false"], {"restart": "no"}),
        (["autorestart=unexpected"], {"restart": "on-failure"}),
        (["startretries=3", "startsecs=2"], {"start_limit_burst": 4, "start_limit_interval_sec": 24, "restart_sec": 1, "restart_steps": 3, "restart_max_delay_sec": 3}),
        (["startretries=0"], {"start_limit_burst": 1, "start_limit_interval_sec": 11}),
        (["stopsignal=QUIT", "stopwaitsecs=30"], {"kill_signal": "SIGQUIT", "timeout_stop_sec": 30}),
        (["numprocs=4", "process_name=%(program_name)s_%(process_num)02d"], {"instances": 4}),
        (["directory=/srv/web", "umask=022"], {"working_directory": "/srv/web", "umask": "022"}),
        (['environment=A="x,y",B=\'z\',C=plain,D="say \\"hi\\""'], {"environment": {"A": "x,y", "B": "z", "C": "plain", "D": 'say "hi"'}}),
        (["stdout_logfile=/var/log/web.log"], {"stdout": "append:/var/log/web.log", "stderr": "file"}),
        (["stdout_logfile=/l", "redirect_stderr=true"], {"stdout": "append:/l"}),
        (["stdout_logfile=NONE", "stderr_logfile=AUTO"], {"stdout": "null", "stderr": "file"}),
        (["stdout_logfile=/dev/stdout", "redirect_stderr=true"], {"stdout": "inherit"}),
        (["stdout_syslog=true", "stderr_syslog=true"], {"stdout": "journal"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_keys_that_have_an_equivalent(lines: list[str], expected: dict[str, Any]) -> None:
    """Each becomes what parsupd has for it, expanded and unquoted as supervisord does."""
    assert expected.items() <= program(*lines).items()


def test_settings_of_all_programs_come_from_supervisord() -> None:
    """Environment, directory and umask; a program's own go first."""
    text = '[supervisord]\nenvironment=A="1",B="2"\numask=077\n[program:x]\ncommand=x\nenvironment=B="3"\n'
    assert units(text)["x"] | {"exec": 0} == {
        "type": "simple", "exec": 0, "stdout": "file", "environment": {"A": "1", "B": "3"}, "umask": "077",
    }  # fmt: skip


def test_a_number_in_the_command_makes_units_of_processes() -> None:
    """Instances of a unit have one command, so each process becomes a unit of its own, with its number filled in."""
    text = "[program:x]\ncommand=x --port 80%(process_num)02d\nnumprocs=2\nnumprocs_start=9\n"
    found = units(text)
    assert [(name, unit["exec"][-1]) for name, unit in found.items()] == [("x-09", "8009"), ("x-10", "8010")]
    assert remarks(text)[0].startswith("[program:x] numprocs: 2 units instead of instances")


def test_priorities_become_an_order() -> None:
    """The next lower number goes first; a group's number is that of its programs; equal ones do not wait."""
    text = (
        "[program:last]\ncommand=x\n[program:db]\ncommand=x\npriority=1\n[program:a]\ncommand=x\npriority=5\n"
        "[program:b]\ncommand=x\n[group:g]\nprograms=b\npriority=5\n"
    )
    assert {name: unit.get("after") for name, unit in units(text).items()} == {
        "last": ["a", "b"], "db": None, "a": ["db"], "b": ["db"],
    }  # fmt: skip


def test_a_fastcgi_program_gets_its_socket() -> None:
    """TCP and Unix; the descriptor's number differs, which is said."""
    text = "[fcgi-program:x]\ncommand=x\nsocket=unix:///run/x.sock\n[fcgi-program:y]\ncommand=y\nsocket=tcp://127.0.0.1:90\n"
    assert [unit["sockets"] for unit in units(text).values()] == [["/run/x.sock"], ["127.0.0.1:90"]]
    assert "descriptor 3" in remarks(text)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[program:x]\ncommand=x\nstartsecs=5", "[program:x] startsecs: parsupd does not guess"),
        ("[program:x]\ncommand=x\nstdout_events_enabled=true", "[program:x] stdout_events_enabled: output is no event"),
        ("[program:x]\ncommand=x\nserverurl=AUTO", "[program:x] serverurl: "),
        ("[program:x]\ncommand=x\nfrobnicate=1", "[program:x] frobnicate: unknown"),
        ("[program:x]\ncommand=x\nexitcodes=2", "[program:x] exitcodes: 0 always counts as success"),
        ("[program:x y]\ncommand=x", "[program:x y]: the unit is named x-y"),
        ("[eventlistener:x]\ncommand=x\nevents=TICK_5", "[eventlistener:x]: not imported"),
        ("[supervisord]\npidfile=/run/x.pid", "[supervisord] pidfile: "),
        ("[inet_http_server]\nport=9001", "[inet_http_server]: parsupd does not listen on TCP"),
        ("[rpcinterface:supervisor]\na=b", "[rpcinterface:supervisor]: nothing corresponds"),
        ("[program:x]\ncommand=x\n[group:g]\nprograms=x", "[group:g]: no unit: start and stop x by name"),
    ],
)
def test_what_has_no_equivalent_is_said(text: str, said: str) -> None:
    """Section and key, and what there is instead."""
    assert any(remark.startswith(said) for remark in remarks(text)), remarks(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[program:x]\nautostart=true", "[program:x] has no command"),
        ("[program:x]\ncommand=x 'y", "[program:x] command: No closing quotation"),
        ("[program:x]\ncommand=x %(ENV_NOTHING)s", "[program:x] command: the variable NOTHING is not set"),
        ("[program:x]\ncommand=x %(nothing)s", "[program:x] command: there is no %(nothing)s"),
        ("[program:x]\ncommand=x\nstopwaitsecs=soon", "[program:x] stopwaitsecs: must be a whole number, not 'soon'"),
        ("[program:x]\ncommand=x\nautostart=maybe", "[program:x] autostart: must be true or false, not 'maybe'"),
        ("[program:x]\ncommand=x\nenvironment==", "[program:x] environment: cannot be read"),
        ("[program:x]\ncommand=x\n[group:g]\nprograms=y", "[group:g] programs: there is no program 'y'"),
        ("[fcgi-program:x]\ncommand=x", "[fcgi-program:x] socket: must be tcp://"),
        ("no section", "contains no section headers"),
    ],
)
def test_what_supervisord_would_refuse_is_refused(text: str, said: str) -> None:
    """With the section, the key and the value."""
    with pytest.raises(NotSupervisordError) as info:
        units(text)
    assert said in str(info.value)


def test_only_keys_that_parsupd_has_are_written() -> None:
    """Whatever is in a file, the result is a unit file."""
    lines = [
        "user=ann",
        "exitcodes=0,2",
        "killasgroup=true",
        "stdout_logfile_maxbytes=50MB",
        "stdout_logfile_backups=10",
    ]
    unit = program(*lines)
    assert unit.keys() <= UNIT_KEYS.keys()
    text = "\n".join(["[unit.web]", *(f"{key} = {toml_text.value(value)}" for key, value in unit.items())])
    assert unitfile.parse([("/x.toml", text)], "").units["web"].exec == ("/bin/web",)


def test_included_files_are_named() -> None:
    """Patterns, several on a line."""
    assert includes(sections("[include]\nfiles = a/*.conf b.ini\n", "s")) == ["a/*.conf", "b.ini"]
    assert includes({}) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (3, "3"), (0.1, "0.1"), (30.0, "30"), (float("inf"), "inf"), ('a"b\\\n\x01', '"a\\"b\\\\\\n\\u0001"'),
        (["a", 1], '["a", 1]'), ({}, "{}"), ({"A": "x", "b c": "y"}, '{ A = "x", "b c" = "y" }'),
    ],
)  # fmt: skip
def test_values_as_toml(value: Any, text: str) -> None:
    """Strings are escaped, whole numbers have no fraction, odd names are quoted."""
    assert toml_text.value(value) == text
