"""When to ask a peer for a sign of life, and when it is lost.

Every byte from the peer is a sign of life. A silent peer is asked at each interval. When the timeout is over, it is
asked once more and has one interval to answer: this process may itself have been stopped or busy for so long, with the
peer's answers unread in the socket, so a deadline alone proves nothing (systemd judges its watchdogs last, too).
"""

import enum

import msgspec


class Verdict(enum.Enum):
    FINE = "fine"
    ASK = "ask"
    LOST = "lost"


class Heartbeat(msgspec.Struct, frozen=True):
    """State of one peer's heartbeat; all times in seconds of one monotonic clock."""

    interval_s: float
    timeout_s: float
    heard_at: float
    due_at: float
    last_chance: bool = False

    @classmethod
    def start(cls, interval_s: float, timeout_s: float, now: float) -> "Heartbeat":
        return cls(interval_s, timeout_s, now, now + interval_s)

    def step(self, now: float, *, heard: bool) -> tuple["Heartbeat", Verdict]:
        """Judges at `now`; `heard` says whether anything came since the last step."""
        if now < self.due_at:
            return self, Verdict.FINE
        due_at = now + self.interval_s
        if heard:
            return msgspec.structs.replace(self, heard_at=now, due_at=due_at, last_chance=False), Verdict.ASK
        if self.last_chance:
            return self, Verdict.LOST
        return msgspec.structs.replace(
            self, due_at=due_at, last_chance=now - self.heard_at >= self.timeout_s
        ), Verdict.ASK
