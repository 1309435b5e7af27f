"""The keys about processes: what they accept, what they refuse, and that the numbers are the kernel's."""

import resource
from typing import Any

import pytest

from parsupd.core.attributes import ATTRIBUTE_KEYS, INFINITY, LIMITS, MAX_CPU, Limit
from parsupd.core.readers import BadValueError

GOOD = [
    ("limit_nofile", 1024, Limit(1024, 1024)),
    ("limit_nofile", "infinity", Limit(INFINITY, INFINITY)),
    ("limit_nofile", [1024, "infinity"], Limit(1024, INFINITY)),
    ("limit_as", "3K", Limit(3072, 3072)),
    ("limit_as", ["1M", "1G"], Limit(1 << 20, 1 << 30)),
    ("nice", -20, -20),
    ("cpu_affinity", ["0-2", 2, "7"], (0, 1, 2, 7)),
    ("oom_score_adj", -1000, -1000),
    ("user", "www-data", "www-data"),
    ("user", "machine$", "machine$"),
    ("user", 0, "0"),
    ("group", "1000", "1000"),
]
BAD = [
    ("limit_nofile", -1),
    ("limit_nofile", True),
    ("limit_nofile", 1.5),
    ("limit_nofile", "512M"),  # not a number of bytes
    ("limit_nofile", 2**63),
    ("limit_nofile", [2, 1]),
    ("limit_nofile", ["infinity", 1]),
    ("limit_nofile", [1]),
    ("limit_as", "1X"),
    ("limit_as", "9999999999T"),
    ("limit_as", "-1"),
    ("nice", 20),
    ("cpu_affinity", []),
    ("cpu_affinity", ["3-1"]),
    ("cpu_affinity", [f"0-{MAX_CPU + 1}"]),
    ("cpu_affinity", [-1]),
    ("cpu_affinity", "0"),
    ("oom_score_adj", 1001),
    ("user", ""),
    ("user", "a b"),
    ("user", "a:b"),
    ("user", -1),
    ("user", 2**32 - 1),
    ("user", "4294967295"),
    ("user", True),
    ("supplementary_groups", "adm"),
]


@pytest.mark.parametrize(("key", "value", "expected"), GOOD)
def test_good_values_arrive(key: str, value: Any, expected: object) -> None:
    """A value of each form is read as what it says."""
    assert ATTRIBUTE_KEYS[key](value) == expected


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_values_are_refused(key: str, value: Any) -> None:
    """Everything else is refused with the value in the message."""
    with pytest.raises(BadValueError, match=r"must (not )?be|cannot be"):
        ATTRIBUTE_KEYS[key](value)


def test_limits_are_the_kernels() -> None:
    """Every limit that Python knows of on this machine has a key, with its number."""
    names = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    known = {f"limit_{name.removeprefix('RLIMIT_').lower()}": number for name, number in names.items()}
    known.pop("limit_ofile", None)  # BSD's name
    known["limit_locks"] = 10  # asm-generic/resource.h; Python leaves it out, as no kernel since 2.4 looks at it
    assert known == LIMITS
    assert INFINITY == resource.RLIM_INFINITY
