"""The layer table of CONTRIBUTING.md, held by reading the imports of every file."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"workerlib": ROOT / "workerlib", "parsupd": ROOT / "supervisor" / "parsupd"}

# What the pure layers (0 to 3) may import besides each other: nothing here can read a clock, a file or a socket.
PURE = {
    "__future__", "abc", "bisect", "builtins", "collections", "dataclasses", "difflib", "enum", "functools", "heapq", "inspect", "itertools",
    "math", "msgspec", "operator", "re", "struct", "tomllib", "types", "typing",
}  # fmt: skip

# Layer of each module, by the longest prefix that matches. A file that no line names fails the test.
LAYERS = {
    "workerlib": 6,
    "workerlib.version": 0,
    "workerlib.errors": 0,
    "workerlib.spec": 0,
    "workerlib.kinds": 0,
    "workerlib.redirects": 0,
    "workerlib.core": 0,
    "workerlib.core.frames": 1,
    "workerlib.core.payload": 1,
    "workerlib.core.uri": 1,
    "workerlib.core.config": 1,
    "workerlib.core.heartbeat": 1,
    "workerlib.core.daemonizing": 1,
    "workerlib.core.gathering": 1,
    "workerlib.core.journal_entry": 1,
    "workerlib.core.backlog": 1,
    "workerlib.core.schema": 1,
    "workerlib.core.session": 2,
    "workerlib.core.mapping": 2,
    "workerlib.core.client_session": 3,
    "workerlib.core.calling": 3,
    "workerlib.core.spawning": 2,
    "workerlib.shell": 4,
    "workerlib.launchers": 4,
    "workerlib.common": 5,
    "workerlib.connection": 5,
    "workerlib.outflow": 5,
    "workerlib.inflow": 5,
    "workerlib.writers": 5,
    "workerlib.feeding": 5,
    "workerlib.streams": 5,
    "workerlib.pump": 5,
    "workerlib.stream_calls": 5,
    "workerlib.servant": 5,
    "workerlib.serving": 5,
    "workerlib.server": 5,
    "workerlib.exchange": 5,
    "workerlib.blocking": 5,
    "workerlib.role": 5,
    "workerlib.spawn_options": 5,
    "workerlib.spawner": 5,
    "workerlib.runtime": 5,
    "workerlib.worker": 5,
    "workerlib.managed": 5,
    "workerlib.detaching": 5,
    "workerlib.hosting": 5,
    "workerlib.app": 5,
    "workerlib.expert": 5,
    "workerlib.references": 5,
    "workerlib.map_worker": 5,
    "workerlib.map_pool": 5,
    "workerlib.map_run": 5,
    "workerlib.mapreduce": 5,
    "workerlib.call_worker": 5,
    "workerlib.futures": 5,
    "workerlib.__main__": 6,
    "workerlib.testing": 6,
    "workerlib.pytest_plugin": 6,
    "parsupd": 6,
    "parsupd.core": 0,
    "parsupd.core.units": 0,
    "parsupd.core.events": 0,
    "parsupd.core.log_settings": 0,
    "parsupd.core.effects": 0,
    "parsupd.core.unitfile": 1,
    "parsupd.core.notification": 1,
    "parsupd.core.probe": 1,
    "parsupd.core.limits": 1,
    "parsupd.core.bounds": 1,
    "parsupd.core.schedule": 1,
    "parsupd.core.restart": 1,
    "parsupd.core.backoff": 1,
    "parsupd.core.start_limit": 1,
    "parsupd.core.groups": 1,
    "parsupd.core.alarms": 2,
    "parsupd.core.rolling": 1,
    "parsupd.core.brake": 1,
    "parsupd.core.installation": 1,
    "parsupd.core.snapshot": 1,
    "parsupd.core.plan": 1,
    "parsupd.core.status": 1,
    "parsupd.core.log_files": 1,
    "parsupd.core.log_records": 1,
    "parsupd.core.unit_machine": 2,
    "parsupd.core.fleet": 3,
    "parsupd.core.recovery": 3,
    "parsupd.core.roster": 2,
    "parsupd.core.summary": 3,
    "parsupd.core.described": 3,
    "parsupd.shell": 4,
    "parsupd.core.event_ring": 1,
    "parsupd.chronicle": 5,
    "parsupd.lives": 5,
    "parsupd.hooks": 5,
    "parsupd.notices": 5,
    "parsupd.surroundings": 5,
    "parsupd.workers": 5,
    "parsupd.executor": 5,
    "parsupd.recorder": 5,
    "parsupd.masters": 5,
    "parsupd.outputs": 5,
    "parsupd.variables": 5,
    "parsupd.limits": 5,
    "parsupd.watching": 5,
    "parsupd.scheduling": 5,
    "parsupd.adoption": 5,
    "parsupd.systemd": 5,
    "parsupd.daemon": 5,
    "parsupd.reloading": 5,
    "parsupd.transients": 5,
    "parsupd.turns": 5,
    "parsupd.watches": 5,
    "parsupd.replacing": 5,
    "parsupd.control": 5,
    "parsupd.rolling": 5,
    "parsupd.app": 6,
    "parsupd.install": 6,
    "parsupd.logger": 6,
    "parsupd.__main__": 6,
    "parsupd.ctl": 6,
}

# The one file (or package) that may touch an outside thing.
DOORS = {
    "Pyro5": {"workerlib.shell.naming", "parsupd.shell.nameserver"},
    "serpent": {"workerlib.shell.naming"},
    "daemon": {"workerlib.shell.detach"},
    "structlog": {"workerlib.shell.journal", "parsupd.shell.structlog_alone"},
    "uvloop": {"workerlib.shell.loop"},
    "ctypes": {"workerlib.shell.process", "parsupd.shell.inotify"},
    "pytest": {"workerlib.pytest_plugin"},
    "click": {"parsupd.app", "parsupd.install", "parsupd.ctl"},
    "rich": {"parsupd.ctl", "workerlib.shell.progress_bar"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def entry(module: str) -> str:
    """The line of the table that a module belongs to."""
    name = module
    while name not in LAYERS:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{module} is in no layer: add it to the table here and in CONTRIBUTING.md"
    if name in PACKAGES and module != name:
        pytest.fail(f"{module} is in no layer: add it to the table here and in CONTRIBUTING.md")
    return name


def layer(module: str) -> int:
    return LAYERS[entry(module)]


def imports(path: Path, module: str) -> set[str]:
    """Absolute names of the modules that a file imports, at any depth of its code; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write the whole name"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = modules()


def ours(module: str) -> set[str]:
    return {name for name in imports(MODULES[module], module) if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    """L0 imports nothing of ours, L1 only L0, and so on; those of one layer from 4 up, and of one package, may use each other."""
    own = layer(module)
    for name in ours(module) - {module}:
        if name in PACKAGES or name.endswith((".core", ".shell", ".launchers", ".ctl")):
            continue  # the package itself: `from workerlib.core import session` also names the module
        if own > 0 and entry(name) == entry(module) and name.startswith(f"{entry(module)}."):
            continue
        assert layer(name) < own or (layer(name) == own and own >= 4) or (own == 0 and layer(name) == 0), (
            f"{module} (layer {own}) imports {name} (layer {layer(name)})"
        )


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) <= 3])
def test_the_pure_layers_touch_nothing_outside(module: str) -> None:
    """Layers 0 to 3 import only the listed modules that cannot read a clock, a file, a socket or a random number."""
    outside = {name.partition(".")[0] for name in imports(MODULES[module], module)} - set(PACKAGES)
    assert outside <= PURE, f"{module} imports {sorted(outside - PURE)}"


@pytest.mark.parametrize("module", MODULES)
def test_each_outside_thing_has_one_door(module: str) -> None:
    """A third-party library is imported in exactly the files that the table names."""
    for name in imports(MODULES[module], module):
        top = name.partition(".")[0]
        if top in DOORS:
            assert any(module == door or module.startswith(f"{door}.") for door in DOORS[top]), (
                f"{module} imports {name}; its door is {sorted(DOORS[top])}"
            )
        elif top not in sys.stdlib_module_names:
            assert top in {"workerlib", "parsupd", "msgspec"}, (
                f"{module} imports {name}, which has no door in the table"
            )


@pytest.mark.parametrize("module", MODULES)
def test_nothing_private_crosses_a_module_border(module: str) -> None:
    """No module imports a name of another module that starts with an underscore."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not private, f"{module} imports {private} from {node.module}"


def test_there_is_no_import_cycle() -> None:
    """The graph of our modules has no cycle."""
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for name in ours(module) - {module} - set(PACKAGES):
            visit(name, (*trail, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_workerlib_never_imports_the_daemon() -> None:
    """The library stands alone: job binaries never load the supervisor."""
    for module in MODULES:
        if module.startswith("workerlib"):
            assert not [name for name in imports(MODULES[module], module) if name.partition(".")[0] == "parsupd"]


def test_core_tests_neither_sleep_nor_mock() -> None:
    """Tests of the pure cores feed events and move `now`; they never wait for a clock and never patch one."""
    for path in (ROOT / "tests" / "core").rglob("*.py"):
        text = path.read_text()
        for word in ("sleep(", "monkeypatch", "unittest.mock", "Mock("):
            assert word not in text, f"{path.name} has {word}"
