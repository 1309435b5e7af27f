"""Which worker gets which items when, as histories: events in, effects out."""

from typing import Any

import pytest

from workerlib.core.gathering import AsTheyCome, FirstHit, Gatherer, InOrder, Tree
from workerlib.core.mapping import (
    MAX_BATCH,
    MAX_JOB_BYTES,
    Answered,
    Effect,
    Fail,
    Fetch,
    Finish,
    Give,
    Item,
    Job,
    Joined,
    Kill,
    Lost,
    NotSpawned,
    Read,
    ReadFailed,
    Rules,
    Scheduler,
    Send,
    Spawn,
    Taken,
)


def rules(**changes: Any) -> Rules:
    plain: dict[str, Any] = {
        "workers": 2,
        "in_flight": 2,
        "batch": 1,
        "read_ahead": 100,
        "retries": 2,
        "item_timeout_s": None,
        "one_at_a_time": True,
        "spawn_one_by_one": False,
    }
    return Rules(**{**plain, **changes})


def items(*names: str) -> list[Item]:
    return [(name, name.encode()) for name in names]


def names(job: Job) -> str:
    return "".join(item or "?" for item, _ in job.items)


class Play:
    """A scheduler with what it has sent, told in short: `send 0 ab`, `give AB`."""

    def __init__(self, gatherer: Gatherer | None = None, **changes: Any) -> None:
        self.scheduler = Scheduler(rules(**changes), gatherer or InOrder())
        self.now = 0.0
        self.jobs: dict[str, tuple[int, Job]] = {}
        self.raw: list[Effect] = []
        self.begin = self.told(self.scheduler.start())

    def told(self, effects: list[Effect]) -> list[str]:
        self.raw = effects
        lines = []
        for effect in effects:
            match effect:
                case Send(worker, job):
                    self.jobs[names(job)] = worker, job
                    lines.append(f"send {worker} {names(job)}" if job.node is None else f"combine {worker}")
                case Give(values):
                    lines.append(f"give {''.join(map(str, values))}")
                case Fetch(count):
                    lines.append(f"fetch {count}")
                case Spawn(worker):
                    lines.append(f"spawn {worker}")
                case Kill(worker):
                    lines.append(f"kill {worker}")
                case Finish():
                    lines.append("finish")
                case Fail(failure):
                    lines.append(f"fail {failure.index} {failure.item}: {failure.cause}")
        return lines

    def feed(self, event: Any) -> list[str]:
        return self.told(self.scheduler.step(event, self.now))

    def join(self, *workers: int) -> list[str]:
        return [line for worker in workers for line in self.feed(Joined(worker))]

    def read(self, text: str, *, ended: bool = False) -> list[str]:
        return self.feed(Read(items(*text), ended))

    def answer(self, name: str, count: int | None = None, error: Exception | None = None) -> list[str]:
        worker, job = self.jobs[name]
        count = len(job.items) if count is None else count
        return self.feed(Answered(worker, job, count, [item.upper() for item, _ in job.items[:count]], error))


def test_workers_are_spawned_together_and_reading_begins_at_once() -> None:
    """Both workers come up in parallel, while the first items are read."""
    play = Play(read_ahead=8)
    assert play.begin == ["spawn 0", "spawn 1", "fetch 8"]
    assert play.read("ab") == []
    assert play.join(1) == ["send 1 a", "send 1 b"]


def test_workers_can_be_spawned_one_after_the_other() -> None:
    """Each is spawned when the one before it is ready; a replacement does not spawn the next one again."""
    play = Play(spawn_one_by_one=True, workers=3)
    assert play.begin == ["spawn 0", "fetch 100"]
    assert play.join(0) == ["spawn 1"]
    assert play.feed(Lost(0, "killed")) == ["spawn 0"]
    assert play.join(0) == []
    assert play.join(1) == ["spawn 2"]
    assert play.join(2) == []


def test_each_worker_has_several_jobs_and_the_least_loaded_gets_the_next() -> None:
    """Items go round; with two in flight each, the fifth waits for an answer and goes to who gave it."""
    play = Play()
    play.join(0, 1)
    assert play.read("abcde") == ["send 0 a", "send 1 b", "send 0 c", "send 1 d"]
    assert play.answer("b") == ["send 1 e"]
    assert play.answer("a") == ["give AB"]


def test_what_is_read_and_not_taken_is_bounded() -> None:
    """With a read-ahead of 4 nothing more is read until the consumer has taken results."""
    play = Play(read_ahead=4)
    play.join(0, 1)
    play.read("abcd")
    for name in "abcd":
        play.answer(name)
    assert play.feed(Taken(1)) == ["fetch 1"]
    play.read("e")
    assert play.answer("e") == ["give E"]
    assert play.feed(Taken(4)) == ["fetch 4"]
    assert play.read("", ended=True) == ["finish"]


def test_the_end_comes_when_the_last_answer_has() -> None:
    """`Finish` follows the last result; an empty source finishes before a worker is up."""
    play = Play()
    play.join(0)
    play.read("ab", ended=True)
    assert play.answer("a") == ["give A"]
    assert play.answer("b") == ["give B", "finish"]
    assert Play().read("", ended=True) == ["finish"]


def test_batches_grow_while_items_are_quick_and_shrink_when_they_are_slow() -> None:
    """A job is as many items as take about 10 ms, at most 1024; one of a hundred that took a second is too large."""
    play = Play(AsTheyCome(), batch=None, read_ahead=100_000, workers=1, in_flight=1)
    play.join(0)
    play.read("x" * 50_000)
    sizes = []
    for took in (0.000_01, 0.000_04, 0.000_16, 0.000_64, 0.002_5, 0.009, 10.0, 1.0):
        [(_, job)] = play.jobs.values()
        play.jobs.clear()
        sizes.append(len(job.items))
        play.now += took
        play.feed(Answered(0, job, len(job.items), ["X"] * len(job.items)))
    assert sizes == [1, 4, 16, 64, 256, MAX_BATCH, MAX_BATCH, 1]


def test_the_last_items_are_shared() -> None:
    """Large batches do not leave one worker with all that remains."""
    play = Play(AsTheyCome(), batch=None, in_flight=1)
    play.join(0, 1)
    play.read("a")
    play.now = 0.000_001
    play.answer("a")
    for _ in range(2):
        play.feed(Taken(1))
    assert play.read("bcdefghi", ended=True) == ["send 0 bc", "send 1 de"]


def test_a_job_is_bounded_in_bytes() -> None:
    """Items whose encodings are long travel in more jobs; one that is longer than the bound travels alone."""
    play = Play(AsTheyCome(), batch=10, workers=1, in_flight=9)
    play.join(0)
    half, whole = b"x" * (MAX_JOB_BYTES // 2), b"x" * (MAX_JOB_BYTES + 1)
    sent = play.feed(Read([("a", half), ("b", half), ("c", half), ("d", whole), ("e", b"")]))
    assert sent == ["send 0 ab", "send 0 c", "send 0 d", "send 0 e"]


def test_the_rest_of_a_job_goes_to_whoever_is_free() -> None:
    """A worker that stopped early answers for some; the others are sent before any new ones."""
    play = Play(batch=4, in_flight=1)
    play.join(0, 1)
    assert play.read("abcdefghij", ended=True) == ["send 0 abcd", "send 1 efgh"]
    assert play.answer("abcd", 1) == ["give A", "send 0 bcd"]
    assert play.answer("efgh") == ["send 1 ij"]
    assert play.answer("ij") == []
    assert play.answer("bcd") == ["give BCDEFGHIJ", "finish"]


def test_items_of_a_lost_worker_are_tried_alone() -> None:
    """After a loss its items go out one by one, each to a worker that has nothing else, and only then new ones."""
    play = Play(batch=2, in_flight=2)
    play.join(0, 1)
    play.read("abcdefghij", ended=True)  # 0: ab, ef; 1: cd, gh
    assert play.feed(Lost(0, "killed by SIGKILL")) == ["spawn 0"]
    assert play.answer("cd") == []
    assert play.answer("gh") == ["send 1 a"]
    assert play.join(0) == ["send 0 b"]
    assert play.answer("b") == ["send 0 e"]
    assert play.answer("a") == ["give ABCD", "send 1 f"]
    assert play.answer("e") == ["give E", "send 0 ij"]
    assert play.answer("f") == ["give FGH"]
    assert play.answer("ij") == ["give IJ", "finish"]


def test_an_item_that_kills_its_workers_is_named() -> None:
    """After its retries the item is the error; the ones that were with it have been done."""
    play = Play(batch=3, workers=1, in_flight=1)
    play.join(0)
    play.read("abc", ended=True)
    assert play.feed(Lost(0, "killed")) == ["spawn 0"]
    assert play.join(0) == ["send 0 a"]
    assert play.answer("a") == ["give A", "send 0 b"]
    assert play.feed(Lost(0, "killed")) == ["spawn 0"]
    assert play.join(0) == ["send 0 c"]
    assert play.answer("c") == ["send 0 b"]
    [*_, failed] = play.feed(Lost(0, "killed by SIGSEGV"))
    assert failed == "fail 1 b: each of 3 workers that had it was lost; the last one: killed by SIGSEGV"
    assert play.scheduler.over


def test_a_worker_that_dies_without_work_is_not_replaced_for_ever() -> None:
    """A place whose workers are lost again and again without an answer ends the run."""
    play = Play(workers=1)
    for _ in range(2):
        play.join(0)
        assert play.feed(Lost(0, "exited with 1")) == ["spawn 0"]
    play.join(0)
    assert play.feed(Lost(0, "exited with 1"))[-1] == (
        "fail None None: worker 0 was lost 3 times in a row without an answer; at last: exited with 1"
    )


def test_a_worker_that_cannot_be_spawned_ends_the_run() -> None:
    """The error of the spawn is what is raised."""
    assert Play().feed(NotSpawned(1, OSError("no memory"))) == ["fail None None: no memory"]


def test_a_replacement_that_cannot_be_spawned_is_tried_again() -> None:
    """Within the retries of its place: a worker was ready there before."""
    play = Play(workers=1, retries=2)
    play.join(0)
    assert play.feed(Lost(0, "killed")) == ["spawn 0"]
    assert play.feed(NotSpawned(0, OSError("no memory"))) == ["spawn 0"]
    assert play.feed(NotSpawned(0, OSError("no memory"))) == ["fail None None: no memory"]


def test_an_error_is_told_after_the_results_before_it() -> None:
    """In order, results of earlier items are given first, nothing new is begun, and the earliest error wins."""
    play = Play(batch=2, in_flight=1)
    play.join(0, 1)
    play.read("abcdefgh")
    assert play.answer("cd", 1, ValueError("no d")) == []
    assert play.answer("ab") == ["give ABC", "fail 3 d: no d"]
    play = Play(batch=2, in_flight=1)
    play.join(0, 1)
    play.read("abcdefgh")
    play.answer("cd", 1, ValueError("no d"))
    assert play.answer("ab", 1, ValueError("no b")) == ["give A", "fail 1 b: no b"]


def test_without_an_order_an_error_is_told_at_once() -> None:
    """Nobody waits for items that do not matter any more."""
    play = Play(AsTheyCome())
    play.join(0, 1)
    play.read("abcd")
    assert play.answer("c", 0, ValueError("no")) == ["fail 2 c: no"]


def test_an_error_of_the_source_comes_after_its_items() -> None:
    """What was read before is mapped and given, then the source's own error is raised."""
    play = Play()
    play.join(0)
    play.read("ab")
    assert play.feed(ReadFailed(OSError("disk"))) == []
    assert play.answer("a") == ["give A"]
    assert play.answer("b") == ["give B", "fail None None: disk"]
    play = Play()
    assert play.feed(ReadFailed(TypeError("cannot travel"), ("x",))) == ["fail 0 x: cannot travel"]


def test_an_item_that_takes_too_long_ends_its_worker() -> None:
    """Where one item runs at a time, the clock of the next starts with the answer to the one before it."""
    play = Play(item_timeout_s=1.0, workers=1)
    play.join(0)
    play.read("ab")
    assert play.scheduler.next_deadline() == 1.0
    play.now = 0.9
    assert play.answer("a") == ["give A"]
    assert play.scheduler.next_deadline() == 1.9
    assert play.told(play.scheduler.tick(1.8)) == []
    assert play.told(play.scheduler.tick(1.9)) == ["kill 0", "fail 1 b: it took longer than 1 s"]


def test_items_that_run_at_the_same_time_have_their_own_clocks() -> None:
    """Where a worker runs all of its jobs at once, each clock starts when the item is sent."""
    play = Play(item_timeout_s=1.0, workers=1, one_at_a_time=False, in_flight=2)
    play.join(0)
    play.read("abc")
    play.now = 0.5
    play.answer("b")
    assert play.scheduler.next_deadline() == 1.0
    play.answer("a")
    assert play.scheduler.next_deadline() == 1.5


def test_neighbours_of_an_item_that_takes_too_long_do_not_pay() -> None:
    """Earlier items that were with the killed worker are done by its successor, and given before the error."""
    play = Play(item_timeout_s=1.0, workers=1, one_at_a_time=False, in_flight=2, retries=0)
    play.join(0)
    play.read("a")
    play.now = 0.2
    play.read("b")
    play.now = 0.3
    play.answer("a", 0)  # the worker stopped before it had done any: it is sent again, and is younger than b now
    assert play.told(play.scheduler.tick(1.2)) == ["kill 0"]
    assert play.feed(Lost(0, "killed")) == ["spawn 0"]
    assert play.join(0) == ["send 0 a"]
    assert play.answer("a") == ["give A", "fail 1 b: it took longer than 1 s"]


def test_the_first_hit_ends_everything() -> None:
    """find_map gives the hit and is over; the others' answers have no effect."""
    play = Play(FirstHit())
    play.join(0, 1)
    play.read("abcd")
    worker, job = play.jobs["a"]
    assert play.feed(Answered(worker, job, 1, [])) == ["fetch 1"]
    worker, job = play.jobs["d"]
    assert play.feed(Answered(worker, job, 1, ["D"])) == ["give D", "finish"]
    assert play.answer("b") == []


def test_combining_steps_go_to_workers_before_new_items() -> None:
    """Values that are there are combined while items are still mapped, so that few are held."""
    tree = Tree(ordered=True)
    play = Play(tree, workers=1, in_flight=1)
    play.join(0)
    play.read("abc", ended=True)
    for name in "ab":
        worker, job = play.jobs[name]
        lines = play.feed(Answered(worker, job, 1, [job.items[0][1]]))
    assert lines == ["combine 0"]
    [effect] = play.raw
    assert isinstance(effect, Send)
    assert [value for _, value in effect.job.items] == [b"a", b"b"]
    assert play.feed(Answered(0, effect.job, 0, [b"ab"])) == ["send 0 c"]
    worker, job = play.jobs["c"]
    assert play.feed(Answered(0, job, 1, [b"c"])) == ["combine 0"]
    [effect] = play.raw
    assert isinstance(effect, Send)
    assert play.feed(Answered(0, effect.job, 0, [b"abc"])) == ["finish"]
    assert tree.result() == b"abc"


@pytest.mark.parametrize("late", ["a", "b"])
def test_answers_of_a_lost_worker_do_not_count(late: str) -> None:
    """What comes for a job that was given up is not taken twice."""
    play = Play(workers=1)
    play.join(0)
    play.read("ab", ended=True)
    worker, job = play.jobs[late]
    play.feed(Lost(0, "killed"))
    assert play.feed(Answered(worker, job, 1, ["?"])) == []


def test_progress_counts() -> None:
    """Done, read, running, workers and losses are what happened."""
    play = Play(workers=2, in_flight=1)
    play.join(0, 1)
    play.read("abcde")
    play.answer("a")
    play.feed(Lost(1, "killed"))
    progress = play.scheduler.progress(5)
    assert (progress.done, progress.read, progress.total) == (1, 5, 5)
    assert (progress.running, progress.workers, progress.lost) == (1, 1, 1)
