"""Pyro5 URIs, `PYRO:object@./u:/path` and `PYRO:object@host:port`, without importing Pyro5."""

import re

import msgspec

from workerlib.errors import UsageError

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path that Linux accepts (sun_path without its closing NUL)."""

_URI = re.compile(r"PYRO:(?P<target>[^\s@]+)@(?P<location>\S+)")
_TCP = re.compile(r"(?P<host>\[[0-9A-Fa-f:%]+\]|[^:\[\]]+):(?P<port>\d{1,5})")


class UnixLocation(msgspec.Struct, frozen=True):
    path: str

    def __str__(self) -> str:
        return f"./u:{self.path}"


class TcpLocation(msgspec.Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Location = UnixLocation | TcpLocation


class Uri(msgspec.Struct, frozen=True):
    """Names one object at one location."""

    target: str
    location: Location

    def __str__(self) -> str:
        return f"PYRO:{self.target}@{self.location}"


def parse_uri(text: str) -> Uri:
    """Raises UsageError that names what is wrong with `text`."""
    match = _URI.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a URI of the form PYRO:object@./u:/path or PYRO:object@host:port")
    location = match["location"]
    if location.startswith("./u:"):
        path = location.removeprefix("./u:")
        if not path:
            raise UsageError(f"{text!r} names no path")
        return Uri(match["target"], UnixLocation(path))
    tcp = _TCP.fullmatch(location)
    if tcp is None or not 0 < int(tcp["port"]) < 65536:
        raise UsageError(f"{text!r}: {location!r} is neither ./u:/path nor host:port")
    return Uri(match["target"], TcpLocation(tcp["host"].strip("[]"), int(tcp["port"])))


def check_socket_path(path: str) -> None:
    """Raises UsageError when the system cannot bind a Unix socket of that name."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the socket path {path!r} is not UTF-8, as URIs are: choose another directory") from None
    if length > MAX_SOCKET_PATH:
        raise UsageError(
            f"the socket path {path!r} has {length} bytes, Linux accepts {MAX_SOCKET_PATH}: choose a shorter directory"
        )
    if ":" in path:
        raise UsageError(
            f"the socket path {path!r} has a colon, which Pyro5 URIs cannot express: choose another directory"
        )
