"""What a program says on its NOTIFY_SOCKET, see sd_notify(3). Layer 1.

Whoever writes there is somebody's program: what cannot be read is left out, and nothing is longer than it may be.
"""

from dataclasses import dataclass

MAX_SIZE = 4096
"""Of a message, as in systemd."""
MAX_STATUS = 400
MAX_EXTENSION_S = 1e6


@dataclass(frozen=True, slots=True)
class Notification:
    """One message."""

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    main_pid: int | None = None
    alive: bool = False  # WATCHDOG=1
    trigger: bool = False  # WATCHDOG=trigger
    extend_s: float | None = None


def parse(data: bytes) -> Notification:
    """Reads one message; of an assignment that comes twice, the last counts."""
    lines = data[:MAX_SIZE].decode(errors="replace").split("\n")
    said = {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
    extend = _number(said.get("EXTEND_TIMEOUT_USEC", ""))
    return Notification(
        ready=said.get("READY") == "1",
        reloading=said.get("RELOADING") == "1",
        stopping=said.get("STOPPING") == "1",
        status=_shown(said["STATUS"]) if "STATUS" in said else None,
        main_pid=_number(said.get("MAINPID", "")) or None,
        alive=said.get("WATCHDOG") == "1",
        trigger=said.get("WATCHDOG") == "trigger",
        extend_s=None if extend is None else min(extend / 1e6, MAX_EXTENSION_S),
    )


def parse_pid(text: str) -> int | None:
    """The pid in a pid file; None when it holds none."""
    return _number(text.strip()) or None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _shown(text: str) -> str:
    """Without what would move a terminal's cursor, or worse."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_STATUS]).strip()
