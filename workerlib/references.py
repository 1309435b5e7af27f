"""How a class or function is named so that another process finds it, and how that process does."""

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from workerlib.core.config import SCRIPT_MODULE, split_reference
from workerlib.errors import UsageError
from workerlib.spec import nearest

_SCRIPT_PATH = "__workerlib_path__"


def reference_of(value: Callable[..., Any]) -> str:
    """How another process finds a class or function: `module:name`, or the script's path when it is of `__main__`.

    Raises UsageError for what no other process can find, and for what it would find something else for.
    """
    name = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str):
        raise UsageError(f"{value!r} has no name by which another process could find it; define a function")
    if name.endswith("<lambda>"):
        raise UsageError(f"a lambda of {module} has no name by which another process could find it; use `def`")
    if "<locals>" in name:
        raise UsageError(f"{name} is defined inside a function, where no other process can find it")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise UsageError(
            f"{module}.{name} is not {value!r}: another process would find something else by that name"
            " (a bound method, or a function that was replaced after its definition)"
        )
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None and spec.name != "__main__":
            return f"{spec.name}:{name}"
        file = getattr(main, "__file__", None)
        if not file:
            raise UsageError(f"{name} is defined in an interactive session; put it into a file")
        script = os.path.abspath(file)
        module = script if spec is None else os.path.dirname(script)  # then a directory or zip file was run
    elif module == SCRIPT_MODULE:  # this process is a worker itself, and spawns another from the same script
        module = vars(sys.modules[module])[_SCRIPT_PATH]
    return f"{module}:{name}"


def load_named(reference: str, what: str) -> Any:
    """What `module:name` or `/path/script.py:name` names. Raises UsageError, or what the import raises.

    `what` says in errors what was looked for: "worker class".
    """
    place, name = split_reference(reference)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    main_file = os.path.abspath(getattr(main, "__file__", None) or "")
    if spec is not None:  # a module, or the __main__.py of a directory or zip file that was run
        main_file = os.path.dirname(main_file)
    if place in {getattr(spec, "name", None), main_file}:
        names: Mapping[str, Any] = vars(main)  # a program that starts its workers as itself: not to be loaded twice
    elif place.startswith("/"):
        names = _load_script(place)
    else:
        try:
            names = vars(import_module(place))
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                raise UsageError(f"there is no module {error.name!r} for the worker {reference!r}") from None
            raise
    value: Any = None
    for part in name.split("."):
        value = names.get(part)
        if value is None:
            raise UsageError(f"{place} has no {what} {name!r}{nearest(part, list(names))}")
        names = vars(value) if hasattr(value, "__dict__") else {}
    # A static method is one only when it is taken from its class.
    return value.__func__ if isinstance(value, staticmethod) else value


def _load_script(path: str) -> Mapping[str, Any]:
    """What a script, or a directory or zip file with a `__main__.py`, defines. It is run once.

    It stays in sys.modules as a module does: annotations of its classes are resolved there when they are needed.
    """
    loaded = sys.modules.get(SCRIPT_MODULE)
    if loaded is None:
        import runpy  # noqa: PLC0415 - a worker whose class is in a module never needs it

        loaded = ModuleType(SCRIPT_MODULE)
        vars(loaded).update(runpy.run_path(path, run_name=SCRIPT_MODULE), **{_SCRIPT_PATH: path})
        sys.modules[SCRIPT_MODULE] = loaded
    return vars(loaded)
