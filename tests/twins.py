"""workerlib's functions that have a twin in C, for tests that must hold for both."""

import importlib
from typing import Any

import pytest

from workerlib import connection, serving
from workerlib.shell import alarm, eager, transport

C: Any
"""The C part, or None."""
try:
    C = importlib.import_module("workerlib._speedups")
except ImportError:
    C = None

needs_c = pytest.mark.skipif(C is None, reason="workerlib's C part was not built here: no compiler")
TWINS = ["Python", pytest.param("C", marks=needs_c)]

_BY_NAME = (
    (connection, "runner"),
    (connection, "result_taker"),
    (serving, "answerer"),
    (transport, "data_receiver"),
    (alarm, "open_timer"),
    (alarm, "set_timer"),
)


def use_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both ends of new connections in this process do, they do in Python, but for the leaves that only compute."""
    for module, name in _BY_NAME:
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(eager, "first_step", eager.first_step_in_python)
