"""The brake on restarts of all units together: a token bucket, who waits for a token, and what is said of it. Layer 1.

The bucket holds `burst` tokens and is filled again within `interval_s`. A restart takes one: a start whose instance has
been restarted, by its policy or for the sake of others, since its last start. Starts that somebody asks for take none.

A storm begins when there is no token left; then restarts wait in a row. It is over when nobody waits and the bucket is
half full again, so that a storm that goes on is told once. Nothing of this is kept over a restart of parsupd.
"""

import math
from itertools import islice

from parsupd.core.effects import StormBegan, StormEnded
from parsupd.core.unit_state import UnitState
from parsupd.core.units import DaemonSettings, InstanceName

ROUNDING = 1e-6
"""By so much a token may be short of whole at the very instant that it was promised for."""


class Bucket:
    """Tokens that come back with time."""

    def __init__(self, burst: int, interval_s: float) -> None:
        """No burst or no interval: there are always tokens."""
        self.burst = burst
        self.interval_s = interval_s
        self._tokens = math.inf  # never more than `burst` after the first look
        self._at = 0.0  # of the last look

    @property
    def is_off(self) -> bool:
        return self.burst == 0 or self.interval_s == 0

    def whole(self, now: float) -> float:
        """How many tokens there are."""
        if self.is_off:
            return math.inf
        grown = self._tokens + (now - self._at) * self.burst / self.interval_s
        self._tokens, self._at = min(float(self.burst), grown), now
        return math.floor(self._tokens + ROUNDING)

    def take(self, now: float) -> bool:
        """Takes one, if there is one."""
        if self.whole(now) < 1:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True

    def has_at(self, count: float) -> float:
        """The instant at which there will be so many, if none is taken until then."""
        if self.is_off:
            return self._at
        return self._at + max(0.0, count - self._tokens) * self.interval_s / self.burst


class Brake:
    """The restarts of one fleet."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._bucket = Bucket(settings.restart_storm_burst, settings.restart_storm_interval_s)
        self._held: dict[InstanceName, float] = {}  # since when; the first one goes on first
        self._spared: set[InstanceName] = set()
        self._counted: dict[InstanceName, int] = {}  # restarts at the last start
        self._told: list[StormBegan | StormEnded] = []
        self._since: float | None = None  # of the storm
        self._delayed = 0  # restarts that had to wait in it

    def set_to(self, settings: DaemonSettings) -> None:
        """Other settings count at once."""
        self._bucket.burst, self._bucket.interval_s = settings.restart_storm_burst, settings.restart_storm_interval_s

    @property
    def storm(self) -> str:
        """The storm in a sentence; empty when there is none."""
        return "" if self._since is None else f"restart storm: {self._limit}, and {len(self._held)} wait for their turn"

    @property
    def _limit(self) -> str:
        return f"{self._bucket.burst} restarts within {self._bucket.interval_s:g} s are reached"

    def holds(self, instance: InstanceName) -> bool:
        """Whether an instance waits for its turn."""
        return instance in self._held

    def admit(self, state: UnitState, now: float) -> tuple[bool, str]:
        """Whether a waiting instance may start now, and the reason with which it does; else it is held back."""
        instance = state.instance
        is_restart = state.restarts and self._counted.get(instance) != state.restarts
        queued = instance in self._held
        if is_restart and instance not in self._spared and not ((queued or not self._held) and self._bucket.take(now)):
            if not queued:
                self._hold(instance, now)
            return False, state.reason
        self._counted[instance] = state.restarts
        since = self._held.pop(instance, now)
        self._spared.discard(instance)
        waited = f"; held back for {now - since:.3g} s by the brake on restarts" if now > since else ""
        return True, state.reason + waited

    def _hold(self, instance: InstanceName, now: float) -> None:
        self._held[instance] = now
        self._delayed += 1
        if self._since is None:
            self._since, self._delayed = now, 1
            self._told.append(StormBegan(f"{self._limit}, the next would be of {instance}: it and others have to wait"))

    def spare(self, instance: InstanceName) -> bool:
        """Somebody asks for a start: it is not held back any more. Returns whether it was."""
        if instance not in self._held:
            return False
        self._spared.add(instance)
        return True

    def drop(self, instance: InstanceName) -> None:
        """It does not want to start any more, or waits for something else."""
        self._held.pop(instance, None)
        self._spared.discard(instance)

    def forget(self, instance: InstanceName) -> None:
        """It is not in the configuration any more."""
        self.drop(instance)
        self._counted.pop(instance, None)

    def next_at(self) -> float | None:
        """When `released` is to be asked next; None when there is no storm."""
        if self._since is None:
            return None
        return self._bucket.has_at(1 if self._held else self._calm)

    @property
    def _calm(self) -> float:
        return max(1.0, self._bucket.burst / 2)

    def released(self, now: float) -> list[InstanceName]:
        """Those that may go on now, if each asks to be admitted; and notices that the storm is over."""
        tokens = self._bucket.whole(now)
        if self._since is not None and not self._held and tokens + ROUNDING >= math.floor(self._calm):
            lasted = now - self._since
            self._told.append(StormEnded(f"{self._delayed} restarts had to wait, within {lasted:.3g} s"))
            self._since = None
        return list(islice(self._held, int(min(tokens, len(self._held)))))

    def told(self) -> list[StormBegan | StormEnded]:
        """What is to be said, once."""
        told, self._told = self._told, []
        return told
