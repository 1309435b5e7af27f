"""workerlib's functions that have a twin in C, for tests that must hold for both."""

import importlib
from typing import Any

import pytest

C: Any
"""The C part, or None."""
try:
    C = importlib.import_module("workerlib._speedups")
except ImportError:
    C = None

needs_c = pytest.mark.skipif(C is None, reason="workerlib's C part was not built here: no compiler")
TWINS = ["Python", pytest.param("C", marks=needs_c)]
