"""What tests of workers need: a clock to move, both ends in one loop, peers that misbehave, leak checks.

`joined` for functions of a worker, without a process or a socket · `FakeClock` for its timers · `spawned` and `Spawner`
for a worker in a process of its own · `ScriptedPeer` and `scripted_server` for an end that plays a script ·
`SessionPair` for the protocol alone · `no_leaks` for what any code leaves behind · `wait_until` instead of sleeping.

The pytest plugin that comes with workerlib gives the fixtures `spawned` and `no_leaks`, and the option
`workerlib_no_leaks` in the ini file, which checks every test. Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workerlib.testing.clock import FakeClock
    from workerlib.testing.joining import joined
    from workerlib.testing.leaks import LeakError, adopt_orphans, no_leaks, wait_until
    from workerlib.testing.script import Ends, Expect, ScriptedPeer, ScriptError, Silence, scripted_server
    from workerlib.testing.sessions import SessionPair
    from workerlib.testing.spawning import Spawner, spawned

_HOMES = {
    "clock": ("FakeClock",),
    "joining": ("joined",),
    "leaks": ("LeakError", "adopt_orphans", "no_leaks", "wait_until"),
    "script": ("Ends", "Expect", "ScriptError", "ScriptedPeer", "Silence", "scripted_server"),
    "sessions": ("SessionPair",),
    "spawning": ("Spawner", "spawned"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Ends",
    "Expect",
    "FakeClock",
    "LeakError",
    "ScriptError",
    "ScriptedPeer",
    "SessionPair",
    "Silence",
    "Spawner",
    "adopt_orphans",
    "joined",
    "no_leaks",
    "scripted_server",
    "spawned",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'workerlib.testing' has no attribute {name!r}")
    value = getattr(import_module(f"workerlib.testing.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
