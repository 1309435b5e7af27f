"""Which worker gets which items when: the machine behind `map` and its relatives.

It is given items as they are read, tells when to read more, and sends them to workers in jobs: as many items as take a
worker about TARGET_S, several jobs at a time to each, so that none waits for a message. An answer may cover only the
first items of its job (a worker stops when they take long); the rest is sent again, to whoever is free.

A worker that is lost costs each item that it had one of `retries`. The jobs that it had are suspects then: each of
their items goes out alone, to a worker that has nothing else, so that an item that kills its worker is found and no
other one has to pay for it. A lost worker is replaced, unless it was lost too often without having answered in between.

The first error ends everything. In order, what comes before it is given first.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from workerlib.core.gathering import Gatherer
from workerlib.errors import MapError

TARGET_S = 0.01
"""How long a job shall take: long beside its message, short beside anybody's patience."""
MAX_BATCH = 1024
MAX_JOB_BYTES = 1 << 20
"""Encoded items of one job; a single one may be longer."""
GROWTH = 4
"""How much larger the next batch may be than the last one."""

Item = tuple[Any, bytes]
"""An item, for errors, and its encoding."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What `Config` says, resolved."""

    workers: int
    in_flight: int
    """Jobs with one worker at a time."""
    batch: int | None
    """Items in a job at most; None: as many as take TARGET_S."""
    read_ahead: int | None
    """Items that were read and are not done with; None: twice what fills all workers."""
    retries: int
    item_timeout_s: float | None
    """With one, `batch` must be 1: only jobs have deadlines."""
    one_at_a_time: bool
    """A worker works on its jobs one after the other, not on all of them at once."""
    spawn_one_by_one: bool


class Job(msgspec.Struct, eq=False):
    """What one message asks of a worker."""

    start: int
    """Index of the first item; of a combining step 0."""
    items: list[Item]
    """The items to map, or the values to combine."""
    group: int
    node: tuple[int, int] | None = None
    """Where the result of a combining step belongs; None: items are to be mapped."""
    attempts: int = 0
    """How many workers were lost with it."""
    sent_at: float = 0.0


class Failure(msgspec.Struct, frozen=True):
    """Why it ended early: at which item, when it was at one."""

    cause: Exception
    index: int | None = None
    item: Any = None


# Events


class Joined(msgspec.Struct, frozen=True):
    """A worker is ready."""

    worker: int


class Lost(msgspec.Struct, frozen=True):
    """A worker has gone."""

    worker: int
    reason: str


class NotSpawned(msgspec.Struct, frozen=True):
    """A worker could not be brought up."""

    worker: int
    error: Exception


class Read(msgspec.Struct, frozen=True):
    """Items were read, no more than were asked for; `ended`: there are no more."""

    items: Sequence[Item]
    ended: bool = False


class ReadFailed(msgspec.Struct, frozen=True):
    """Reading raised, or an item cannot travel: `failed` is that item."""

    error: Exception
    failed: tuple[Any] | None = None


class Answered(msgspec.Struct, frozen=True):
    """A worker has done the first `count` items of a job, and stopped at `error` after them, if there was one."""

    worker: int
    job: Job
    count: int
    values: list[Any]
    """Results: one for each item, the hits among them, or the one into which they were combined (none for no items)."""
    error: Exception | None = None


class Taken(msgspec.Struct, frozen=True):
    """The consumer has taken so many results."""

    count: int


Event = Joined | Lost | NotSpawned | Read | ReadFailed | Answered | Taken

# Effects


class Spawn(msgspec.Struct, frozen=True):
    """Bring up the worker of this number."""

    worker: int


class Fetch(msgspec.Struct, frozen=True):
    """Read so many more items."""

    count: int


class Send(msgspec.Struct, frozen=True):
    """Give the job to the worker."""

    worker: int
    job: Job


class Give(msgspec.Struct, frozen=True):
    """Results for the consumer."""

    values: list[Any]


class Kill(msgspec.Struct, frozen=True):
    """End the worker: an item takes too long there. `Lost` follows."""

    worker: int


class Finish(msgspec.Struct, frozen=True):
    """Everything is done."""


class Fail(msgspec.Struct, frozen=True):
    """It has failed; nothing more comes."""

    failure: Failure


Effect = Spawn | Fetch | Send | Give | Kill | Finish | Fail


class Progress(msgspec.Struct, frozen=True):
    """How far a map is."""

    done: int
    """Items that are mapped."""
    read: int
    """Items that were read."""
    total: int | None
    """How many there are, when that is known."""
    running: int
    """Items that are with workers."""
    workers: int
    """Workers that are ready."""
    lost: int
    """Workers that were lost, so far."""


class _Slot:
    """One worker, as far as its place in the machine goes; replacements take over the place."""

    __slots__ = ("free_at", "jobs", "killed", "losses", "number", "up", "was_up")

    def __init__(self, number: int) -> None:
        self.number = number
        self.up = False
        self.was_up = False
        """A worker has been ready in this place."""
        self.killed = False
        self.jobs: deque[Job] = deque()
        self.free_at = 0.0
        """When it last answered: since then it works on the first of its jobs."""
        self.losses = 0
        """In a row, without an answer in between."""


class Scheduler:
    """The machine. Feed it with `step`; what it returns is to be done in that order."""

    def __init__(self, rules: Rules, gatherer: Gatherer) -> None:
        self._rules = rules
        self._gatherer = gatherer
        self._slots = [_Slot(number) for number in range(rules.workers)]
        self._fresh: deque[Item] = deque()
        """Items that were read and never sent."""
        self._again: deque[Job] = deque()
        """Jobs to be sent again, and combining steps."""
        self._suspects: deque[Job] = deque()
        self._batch = rules.batch or 1
        self._read = self._sent = self._done = self._released = self._asked = self._lost = 0
        self._combining = 0
        self._ended = False
        self._failure: Failure | None = None
        self._limit = -1
        """With a failure: the item before which results are still given."""
        self._called = 1 if rules.spawn_one_by_one else rules.workers
        """Places whose first worker has been spawned."""
        self.over = False

    def start(self) -> list[Effect]:
        """Spawns workers and begins to read."""
        return [*(Spawn(slot.number) for slot in self._slots[: self._called]), *self._fetch()]

    def step(self, event: Event, now: float) -> list[Effect]:
        """Takes one event. After the end nothing has an effect."""
        if self.over:
            return []
        effects: list[Effect] = []
        match event:
            case Answered():
                self._take_answer(event, now, effects)
            case Taken(count):
                self._released += count
            case Read(items, ended):
                self._take_items(items, ended=ended)
            case Joined(worker):
                self._join(self._slots[worker], effects)
            case Lost(worker, reason):
                self._lose(self._slots[worker], reason, effects)
            case NotSpawned(worker, error):
                self._miss(self._slots[worker], error, effects)
            case ReadFailed(error, failed):
                index = None if failed is None else self._read
                self._fail(Failure(error, index, failed[0] if failed else None), now_at=self._read)
        self._go_on(now, effects)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Judges the deadlines of items at `now`."""
        effects: list[Effect] = []
        for slot in self._slots:
            overdue = [job for job in slot.jobs if (by := self._deadline(slot, job)) is not None and by <= now]
            if overdue and not slot.killed and not self.over:
                slot.killed = True
                effects.append(Kill(slot.number))
                for job in overdue:
                    slot.jobs.remove(job)
                    self._fail_job(job, TimeoutError(f"it took longer than {self._rules.item_timeout_s:g} s"))
        self._go_on(now, effects)
        return effects

    def next_deadline(self) -> float | None:
        """When `tick` is to be called, if nothing happens before."""
        if self._rules.item_timeout_s is None or self.over:
            return None
        deadlines = (self._deadline(slot, job) for slot in self._slots if not slot.killed for job in slot.jobs)
        return min((by for by in deadlines if by is not None), default=None)

    def progress(self, total: int | None) -> Progress:
        running = sum(len(job.items) for slot in self._slots for job in slot.jobs if job.node is None)
        up = sum(slot.up for slot in self._slots)
        return Progress(self._done, self._read, total, running, up, self._lost)

    def _deadline(self, slot: _Slot, job: Job) -> float | None:
        if self._rules.item_timeout_s is None:
            return None
        if not self._rules.one_at_a_time:
            return job.sent_at + self._rules.item_timeout_s
        if job is slot.jobs[0]:
            return max(job.sent_at, slot.free_at) + self._rules.item_timeout_s
        return None  # it has not begun

    # Items

    def _take_items(self, items: Sequence[Item], *, ended: bool) -> None:
        self._asked -= len(items)
        self._read += len(items)
        self._ended = self._ended or ended
        if self._failure is None:
            self._fresh.extend(items)

    def _fetch(self) -> list[Effect]:
        if self._ended or self._failure is not None:
            return []
        bound = self._rules.read_ahead or 2 * self._batch * self._rules.in_flight * self._rules.workers
        room = bound - (self._read - self._released) - self._asked
        if room <= 0 or (self._fresh and room * 4 < bound):  # not for each single one
            return []
        self._asked += room
        return [Fetch(room)]

    # Workers

    def _join(self, slot: _Slot, effects: list[Effect]) -> None:
        slot.up, slot.was_up, slot.killed = True, True, False
        if slot.number + 1 == self._called < len(self._slots):
            self._called += 1
            effects.append(Spawn(slot.number + 1))

    def _miss(self, slot: _Slot, error: Exception, effects: list[Effect]) -> None:
        """The first worker of a place fails for a reason that stays; that of a replacement may have been bad luck."""
        slot.losses += 1
        if slot.was_up and slot.losses <= self._rules.retries:
            effects.append(Spawn(slot.number))
        else:
            self._fail(Failure(error), now_at=None)

    def _lose(self, slot: _Slot, reason: str, effects: list[Effect]) -> None:
        guilty = not slot.killed
        slot.up, slot.killed = False, False
        slot.losses += guilty
        self._lost += 1
        jobs, slot.jobs = slot.jobs, deque()
        for job in jobs:
            if not guilty:
                self._again.append(job)
                continue
            for offset, item in enumerate(job.items) if job.node is None else ():
                self._suspects.append(Job(job.start + offset, [item], job.group, None, job.attempts + 1))
            if job.node is not None:
                job.attempts += 1
                self._suspects.append(job)
        given_up = [job for job in self._suspects if job.attempts > self._rules.retries]
        for job in given_up:
            times = "the worker" if job.attempts == 1 else f"each of {job.attempts} workers"
            what = "it" if job.node is None else "a combining step"
            self._fail_job(job, MapError(f"{times} that had {what} was lost; the last one: {reason}"))
        if not given_up and slot.losses > self._rules.retries:
            why = f"worker {slot.number} was lost {slot.losses} times in a row without an answer; at last: {reason}"
            self._fail(Failure(MapError(why)), now_at=None)
        effects.append(Spawn(slot.number))

    # Answers

    def _take_answer(self, event: Answered, now: float, effects: list[Effect]) -> None:
        slot, job, count = self._slots[event.worker], event.job, event.count
        if job not in slot.jobs:
            return  # it came too late: the job was given up
        slot.jobs.remove(job)
        slot.losses = 0
        if job.node is not None:
            self._combining -= 1
            if event.error is None:
                self._gatherer.combined(job.node, event.values[0])
        else:
            self._adapt(job, count, now - max(job.sent_at, slot.free_at if self._rules.one_at_a_time else 0.0))
            if count:
                self._done += count
                if not self._gatherer.holds_results:
                    self._released += count
                values = self._gatherer.mapped(job.group, job.start, count, event.values)
                if values:
                    effects.append(Give(values))
        slot.free_at = now
        if event.error is not None:
            job.start, job.items = job.start + count, job.items[count:]
            self._fail_job(job, event.error)
        elif job.node is None and count < len(job.items):
            rest = Job(job.start + count, job.items[count:], job.group, None, job.attempts)
            (self._suspects if job.attempts else self._again).append(rest)

    def _adapt(self, job: Job, count: int, took_s: float) -> None:
        if self._rules.batch is not None:
            return
        if count < len(job.items):
            self._batch = max(1, min(self._batch, count))
        elif took_s <= 0:
            self._batch = min(MAX_BATCH, self._batch * GROWTH)
        else:
            self._batch = max(1, min(MAX_BATCH, self._batch * GROWTH, int(count * TARGET_S / took_s)))

    # The end

    def _fail_job(self, job: Job, cause: Exception) -> None:
        if job.node is None:
            self._fail(Failure(cause, job.start, job.items[0][0]), now_at=job.start)
        else:
            self._fail(Failure(cause), now_at=None)

    def _fail(self, failure: Failure, *, now_at: int | None) -> None:
        """Notes an error; `now_at` is the item before which results are still given when they are given in order."""
        limit = -1 if now_at is None else now_at
        if self._failure is None or limit < self._limit:
            self._failure, self._limit = failure, limit
        while self._fresh and self._sent + len(self._fresh) > self._limit:
            self._fresh.pop()
        for jobs in (self._again, self._suspects):
            kept = [job for job in jobs if job.node is None and job.start < self._limit]
            jobs.clear()
            jobs.extend(kept)

    def _go_on(self, now: float, effects: list[Effect]) -> None:
        if self.over:
            return
        if self._gatherer.satisfied():
            self._finish(effects)
        elif self._failure is not None and self._gatherer.reached(self._limit):
            self.over = True
            effects.append(Fail(self._failure))
        else:
            while (step := self._gatherer.due()) is not None:
                self._combining += 1
                self._again.append(Job(0, [(None, value) for value in step.values], 0, step.node))
            if self._all_done():
                if self._gatherer.conclude():
                    self._finish(effects)
                else:
                    self._go_on(now, effects)
            else:
                self._dispatch(now, effects)
                effects += self._fetch()

    def _all_done(self) -> bool:
        return self._ended and self._done == self._read and not self._combining and self._failure is None

    def _finish(self, effects: list[Effect]) -> None:
        self.over = True
        effects.append(Finish())

    # Dispatch

    def _dispatch(self, now: float, effects: list[Effect]) -> None:
        while self._suspects or self._again or self._fresh:
            slot = min((slot for slot in self._slots if self._has_room(slot)), key=_load, default=None)
            if slot is None:
                return
            job = self._suspects.popleft() if self._suspects else self._next_job()
            job.sent_at = now
            slot.jobs.append(job)
            effects.append(Send(slot.number, job))

    def _has_room(self, slot: _Slot) -> bool:
        if not slot.up or slot.killed:
            return False
        if self._suspects or (slot.jobs and slot.jobs[0].attempts):
            return not slot.jobs
        return len(slot.jobs) < self._rules.in_flight

    def _next_job(self) -> Job:
        """Jobs that were sent before come first: others may wait for them."""
        if self._again:
            return self._again.popleft()
        if self._rules.batch is not None:
            most = self._rules.batch
        else:
            # The last items are shared among all: nobody shall wait for one worker that has many of them.
            most = min(self._batch, math.ceil(len(self._fresh) / (2 * len(self._slots))))
        items = [self._fresh.popleft()]
        size = len(items[0][1])
        while len(items) < most and self._fresh and size + len(self._fresh[0][1]) <= MAX_JOB_BYTES:
            items.append(self._fresh.popleft())
            size += len(items[-1][1])
        start, self._sent = self._sent, self._sent + len(items)
        return Job(start, items, self._gatherer.opened(len(items)))


def _load(slot: _Slot) -> int:
    return len(slot.jobs)
