"""Probes of a unit as its file describes them: what is asked, how often, and what the answers come to. Layer 0."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parsupd.core.readers import BadValueError, Reader, did_you_mean, filled, seconds, several, text, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question that is asked again and again; exactly one of `exec`, `tcp`, `http` and `rpc` is set."""

    exec: tuple[str, ...] = ()  # passes when it exits with 0
    tcp: str = ""  # "IPv4:port", "[IPv6]:port" or "/path": passes when somebody accepts
    http: str = ""  # http://IP:port/path: passes with a status from 200 to 299
    rpc: str = ""  # of a worker: "ping", or the name of a function: passes unless it raises or returns False
    interval_s: float = 10.0
    timeout_s: float = 1.0
    initial_delay_s: float = 0.0
    failure_threshold: int = 3
    success_threshold: int = 1

    @property
    def question(self) -> str:
        """Which of the four it is, for messages."""
        return next(name for name in QUESTIONS if getattr(self, name))


def probe_table(probe: Probe) -> dict[str, Any]:
    """The table that reads as this probe, without what is as by default."""
    fields = {name: getattr(probe, name) for name in Probe.__dataclass_fields__}
    told = {name: value for name, value in fields.items() if value != Probe.__dataclass_fields__[name].default}
    return {
        name[:-2] + "_sec" if name.endswith("_s") else name: list(value) if isinstance(value, tuple) else value
        for name, value in told.items()
    }


QUESTIONS = ("exec", "tcp", "http", "rpc")

_ADDRESS = re.compile(r"(?P<host>[0-9.]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_URL = re.compile(rf"http://{_ADDRESS.pattern}(?P<path>/[!-~]*)?")
_FUNCTION = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address that `_tcp` has read."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def split_url(url: str) -> tuple[str, str]:
    """Address and path of a URL that `_http` has read."""
    address, slash, path = url.removeprefix("http://").partition("/")
    return address, f"/{path}" if slash else "/"


def _tcp(value: Any) -> str:
    found = _ADDRESS.fullmatch(text(value))
    if not (value.startswith("/") or (found and 0 < int(found["port"]) < 65536)):
        raise BadValueError(f'must be "IPv4:port", "[IPv6]:port" or an absolute path, not {value!r}')
    return str(value)


def _http(value: Any) -> str:
    found = _URL.fullmatch(text(value))
    if not (found and 0 < int(found["port"]) < 65536):
        raise BadValueError(f'must be "http://IP:port/path", without names that would be looked up, not {value!r}')
    return str(value)


def _function(value: Any) -> str:
    if not _FUNCTION.fullmatch(text(value)):
        raise BadValueError(f'must be "ping" or the name of a public function, not {value!r}')
    return str(value)


def more_than_nothing(value: Any) -> float:
    """Reads a duration in seconds that is not 0."""
    duration = float(seconds()(value))
    if duration <= 0:
        raise BadValueError(f"must be more than 0, not {value!r}")
    return duration


PROBE_KEYS: Mapping[str, Reader] = {
    "exec": several(filled, at_least=1),
    "tcp": _tcp,
    "http": _http,
    "rpc": _function,
    "interval_sec": more_than_nothing,
    "timeout_sec": more_than_nothing,
    "initial_delay_sec": seconds(),
    "failure_threshold": whole(1, 1000),
    "success_threshold": whole(1, 1000),
}


def probe(value: Any) -> Probe:
    """Reads the table of a probe."""
    if not isinstance(value, dict):
        raise BadValueError(f"must be a table, not {value!r}")
    fields: dict[str, Any] = {}
    for key, content in value.items():
        reader = PROBE_KEYS.get(key)
        if reader is None:
            raise BadValueError(f"unknown key{did_you_mean(key, PROBE_KEYS)}", f".{key}")
        try:
            fields[key.removesuffix("_sec") + "_s" * key.endswith("_sec")] = reader(content)
        except BadValueError as error:
            raise BadValueError(str(error), f".{key}{error.below}") from None
    asked = [name for name in QUESTIONS if name in fields]
    if len(asked) != 1:
        raise BadValueError(f"needs exactly one of {', '.join(QUESTIONS)}, and has {', '.join(asked) or 'none'}")
    return Probe(**fields)
