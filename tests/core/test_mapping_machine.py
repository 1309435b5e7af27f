"""The scheduler with random items, workers that answer late, in part or never, and a consumer that takes its time."""

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from workerlib.core.gathering import AsTheyCome, FirstHit, InOrder, Tree
from workerlib.core.mapping import (
    Answered,
    Fail,
    Fetch,
    Finish,
    Give,
    Job,
    Joined,
    Kill,
    Lost,
    Read,
    Rules,
    Scheduler,
    Send,
    Spawn,
    Taken,
)

GATHERERS = {
    "map": InOrder,
    "map_unordered": AsTheyCome,
    "find_map": FirstHit,
    "map_reduce": lambda: Tree(ordered=True),
    "map_reduce_commutative": lambda: Tree(ordered=False),
}
HIT_AT = 23
"""The item that find_map looks for."""


class Machine(RuleBasedStateMachine):
    """Items are their numbers; the result of an item is its number too, and values are combined as texts."""

    @initialize(
        kind=st.sampled_from(sorted(GATHERERS)),
        workers=st.integers(1, 3),
        in_flight=st.integers(1, 3),
        batch=st.sampled_from([None, 1, 3, 10]),
        read_ahead=st.sampled_from([None, 1, 7, 50]),
        total=st.sampled_from([0, 1, 2, 5, 20, 60]),
        one_at_a_time=st.booleans(),
        spawn_one_by_one=st.booleans(),
    )
    def begin(self, kind: str, total: int, **options: Any) -> None:
        self.kind, self.total = kind, total
        # Losses are rare enough in a run that none is due to end it: that is tested as histories.
        self.rules = Rules(**options, retries=1000, item_timeout_s=None)
        self.gatherer = GATHERERS[kind]()
        self.scheduler = Scheduler(self.rules, self.gatherer)
        self.now = 0.0
        self.read = self.asked = self.taken = 0
        self.given: list[int] = []
        self.waiting: set[int] = set()  # workers that are being spawned
        self.up: set[int] = set()
        self.jobs: list[tuple[int, Job]] = []
        self.stale: list[tuple[int, Job]] = []
        self.finished = False
        self.do(self.scheduler.start())

    def do(self, effects: list[Any]) -> None:
        for effect in effects:
            assert not self.finished, f"{effect} after the end"
            match effect:
                case Spawn(worker):
                    assert worker not in self.waiting | self.up
                    self.waiting.add(worker)
                case Fetch(count):
                    assert count > 0
                    self.asked += count
                case Send(worker, job):
                    assert worker in self.up
                    assert job.items
                    self.jobs.append((worker, job))
                    mine = [own for at, own in self.jobs if at == worker]
                    assert len(mine) <= self.rules.in_flight
                    assert len(mine) == 1 or not any(own.attempts for own in mine), "a suspect is not alone"
                case Give(values):
                    self.given += values
                case Finish():
                    self.finished = True
                case Kill() | Fail():
                    raise AssertionError(f"nothing fails here: {effect}")

    def feed(self, event: Any) -> None:
        self.do(self.scheduler.step(event, self.now))

    @rule(count=st.integers(1, 40))
    def some_items_are_read(self, count: int) -> None:
        count = min(count, self.asked, self.total - self.read)
        if self.asked and not self.finished:
            numbers = range(self.read, self.read + count)
            self.read += count
            self.asked -= count
            self.feed(Read([(n, b"%d," % n) for n in numbers], ended=self.read == self.total))

    @rule(data=st.data())
    def a_worker_comes_up(self, data: st.DataObject) -> None:
        if self.waiting:
            worker = data.draw(st.sampled_from(sorted(self.waiting)))
            self.waiting.remove(worker)
            self.up.add(worker)
            self.feed(Joined(worker))

    @rule(data=st.data(), took=st.sampled_from([0.0, 0.0001, 0.5]))
    def a_job_is_answered(self, data: st.DataObject, took: float) -> None:
        if self.jobs:
            worker, job = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
            self.now += took
            count = len(job.items) - (data.draw(st.integers(0, len(job.items))) if job.node is None else 0)
            self.stale.append((worker, job))
            self.feed(self.answer_of(worker, job, count))

    def answer_of(self, worker: int, job: Job, count: int) -> Answered:
        done = job.items[:count]
        if self.kind.startswith("map_reduce"):
            return Answered(worker, job, 0 if job.node else count, [b"".join(code for _, code in done)] if done else [])
        return Answered(worker, job, count, [n for n, _ in done if self.kind != "find_map" or n == HIT_AT])

    @rule(data=st.data())
    def a_late_answer_comes_again(self, data: st.DataObject) -> None:
        """What was lost or answered before has no effect."""
        if self.stale:
            worker, job = data.draw(st.sampled_from(self.stale))
            before = len(self.given)
            self.feed(self.answer_of(worker, job, len(job.items)))
            assert len(self.given) == before

    @precondition(lambda self: len(self.stale) < 300)
    @rule(data=st.data())
    def a_worker_is_lost(self, data: st.DataObject) -> None:
        if self.up and not self.finished:
            worker = data.draw(st.sampled_from(sorted(self.up)))
            self.up.remove(worker)
            self.stale += [entry for entry in self.jobs if entry[0] == worker]
            self.jobs = [entry for entry in self.jobs if entry[0] != worker]
            self.feed(Lost(worker, "killed"))

    @rule(count=st.integers(1, 50))
    def the_consumer_takes(self, count: int) -> None:
        count = min(count, len(self.given) - self.taken)
        if count:
            self.taken += count
            self.feed(Taken(count))

    @invariant()
    def the_order_is_kept(self) -> None:
        if self.kind == "map":
            assert self.given == list(range(len(self.given)))
        assert len(set(self.given)) == len(self.given), "an item twice"

    @invariant()
    def reading_is_bounded(self) -> None:
        if self.rules.read_ahead is not None and self.kind.startswith("map") and "reduce" not in self.kind:
            assert self.read + self.asked - self.taken <= self.rules.read_ahead

    def teardown(self) -> None:
        """Whatever happened: when everybody does their part, it ends, with every item exactly once."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.finished:
                break
            for worker in sorted(self.waiting):
                self.waiting.remove(worker)
                self.up.add(worker)
                self.feed(Joined(worker))
            self.some_items_are_read(self.asked)
            while self.jobs and not self.finished:
                worker, job = self.jobs.pop(0)
                self.feed(self.answer_of(worker, job, len(job.items)))
            self.the_consumer_takes(len(self.given))
        assert self.finished, "stuck"
        everything = list(range(self.total))
        if self.kind == "map":
            assert self.given == everything
        elif self.kind == "map_unordered":
            assert sorted(self.given) == everything
        elif self.kind == "find_map":
            assert self.given == ([HIT_AT] if self.total > HIT_AT else [])
        else:
            assert isinstance(self.gatherer, Tree)
            numbers = [int(text) for text in (self.gatherer.result() or b"").split(b",") if text]
            assert (numbers if self.kind == "map_reduce" else sorted(numbers)) == everything


def test_every_item_is_done_exactly_once() -> None:
    """With losses, partial answers and late ones: order, bounds, no item lost, none twice, and it always ends."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=300,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking takes minutes here, longer than a test may
        ),
    )
