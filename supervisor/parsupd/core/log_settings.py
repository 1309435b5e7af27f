"""How the output of a unit is kept in files: values only. Layer 0.

The logger, a small program of its own, imports this too: nothing here loads what it would not need.
"""

from typing import NamedTuple, Self

PLAIN, JSON = "plain", "json"
BLOCK, DROP = "block", "drop"

LOG_FORMATS = (PLAIN, JSON)
"""What a line of a log file looks like."""
FULL_POLICIES = (BLOCK, DROP)
"""What becomes of output that cannot be written: the unit waits for some time, or it is lost, and counted."""

STDOUT, STDERR = "stdout", "stderr"
STREAMS = {1: STDOUT, 2: STDERR}
"""Names of the streams by the descriptor that they are in a unit."""


LEAST_FILE = 64 << 10
"""Bytes of the smallest file that can be asked for."""


class LogSettings(NamedTuple):
    """Of one unit; sizes in bytes, of each instance."""

    form: str = PLAIN
    rotate_size: int = 16 << 20
    rotate_age_s: float = float("inf")
    total_size: int = 256 << 20
    compress: bool = True
    full_policy: str = BLOCK
    block_s: float = 10.0

    @property
    def rotate_at(self) -> int:
        """Size at which a new file is begun: two files at least fit into the total, so that there is a past to read."""
        return min(self.rotate_size, self.total_size // 2)

    @property
    def patience_s(self) -> float:
        """How long output may stand still before it is dropped."""
        return self.block_s if self.full_policy == BLOCK else 0.0

    def words(self) -> tuple[str, ...]:
        """As `read` takes it."""
        return tuple(repr(value) if isinstance(value, float) else str(value) for value in self)

    @classmethod
    def read(cls, words: tuple[str, ...]) -> Self:
        """Raises ValueError."""
        form, size, age, total, compress, policy, block = words
        return cls(form, int(size), float(age), int(total), compress == "True", policy, float(block))


ALL_FILES = 4 << 30
"""Bytes that the log files of all units take together, unless the configuration says otherwise."""
