"""Map and reduce on real worker processes: results, errors that name their item, lost workers, and nothing left."""

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import mapped
import pytest
from mapped import CountWords, Point, Scale, WhoAmI
from rich.console import Console
from support import ENGINES, alive, run_async, wait_until
from test_spawn import no_worker_left, workers_of  # noqa: F401 - the fixture holds for all tests here

import workerlib
from workerlib import (
    ArgumentError,
    Config,
    ItemError,
    MapError,
    Progress,
    ProgressBar,
    Redirect,
    RemoteError,
    ResultError,
    RpcSettings,
    SpawnError,
    UsageError,
)
from workerlib.shell.loop import run

TWO = Config(local=2)
ONE = Config(local=1)


def check(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs a scenario on uvloop, bounded; when it returns, its workers are gone."""

    async def bounded() -> None:
        async with asyncio.timeout(40):
            await scenario()
            assert workers_of(os.getpid()) == []

    run(bounded())


async def taken(results: workerlib.Results[Any]) -> list[Any]:
    async with results:
        return [result async for result in results]


async def collect(results: workerlib.Results[Any], into: list[Any]) -> None:
    """What came before an error stays in `into`."""
    async with results:
        async for result in results:
            into.append(result)


async def numbers(below: int) -> AsyncIterator[int]:
    for n in range(below):
        yield n


# What comes out


@pytest.mark.parametrize("engine", ENGINES)
def test_map_keeps_the_order(engine: str) -> None:
    """Results of a plain iterable, and of an async one, are in the order of the items; on both event loops."""

    async def scenario() -> None:
        expected = [n * n for n in range(5000)]
        assert await taken(workerlib.map(mapped.square, range(5000), TWO)) == expected
        assert await taken(workerlib.map(mapped.square, numbers(5000), TWO)) == expected
        assert await taken(workerlib.map(mapped.square, [], TWO)) == []

    run_async(scenario, engine)


def test_async_functions_run_at_the_same_time() -> None:
    """A worker has `in_flight` items of an async function at a time: 100 naps of 100 ms do not take 10 seconds."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stamps: list[float] = []
        config = Config(local=1, in_flight=50)
        async with workerlib.map(mapped.square_later, range(100), config) as results:
            async for result in results:
                stamps.append(loop.time())
                assert result == (len(stamps) - 1) ** 2
        assert len(stamps) == 100
        assert stamps[-1] - stamps[0] < 5.0

    check(scenario)


def test_map_unordered_gives_every_result_once() -> None:
    """The same results, in whatever order."""

    async def scenario() -> None:
        results = await taken(workerlib.map_unordered(mapped.square, numbers(3000), TWO))
        assert sorted(results) == [n * n for n in range(3000)]

    check(scenario)


def test_find_map_stops_at_the_first_hit_of_an_endless_source() -> None:
    """The hit is returned though the items never end; None when there is no hit."""

    async def scenario() -> None:
        assert await workerlib.find_map(mapped.hit_at_5000, itertools.count(), TWO) == "found 5000"
        assert await workerlib.find_map(mapped.hit_at_5000, range(100), TWO) is None

    check(scenario)


@pytest.mark.parametrize("batch", [None, 1, 7])
def test_map_reduce_keeps_the_order(batch: int | None) -> None:
    """Neighbours are combined in the order of the items, whatever the batches; no items give None."""

    async def scenario() -> None:
        config = Config(local=2, batch=batch)
        expected = "".join(f"{n}," for n in range(1000))
        assert await workerlib.map_reduce(mapped.text, range(1000), config, combine=mapped.concatenate) == expected
        assert await workerlib.map_reduce(mapped.text, [], config, combine=mapped.concatenate) is None
        assert await workerlib.map_reduce(mapped.text, [5], config, combine=mapped.concatenate) == "5,"

    check(scenario)


def test_map_reduce_commutative_combines_everything() -> None:
    """The sum of a hundred thousand squares; and word counts by a class, whose results are typed."""

    async def scenario() -> None:
        total = await workerlib.map_reduce_commutative(mapped.square, range(100_000), TWO, combine=mapped.add)
        assert total == sum(n * n for n in range(100_000))
        counts = await workerlib.map_reduce_commutative(CountWords, ["a b", "b c", "c c"], TWO)
        assert counts == {"a": 1, "b": 2, "c": 3}
        total = await workerlib.map_reduce_commutative(
            mapped.square_later, range(20), Config(local=2, in_flight=20), combine=mapped.add_later
        )
        assert total == sum(n * n for n in range(20))

    check(scenario)


def test_types_are_those_of_the_annotations() -> None:
    """A dataclass arrives as itself on both sides."""

    async def scenario() -> None:
        points = await taken(workerlib.map(mapped.mirror, [Point(1, 2), Point(3, 4)], ONE))
        assert points == [Point(2, 1), Point(4, 3)]

    check(scenario)


def test_a_class_has_its_init_argument_and_its_index() -> None:
    """`init` by position or by name reaches each worker; each knows its number."""

    async def scenario() -> None:
        assert await taken(workerlib.map(Scale, range(3), ONE, init=[10])) == [0, 10, 20]
        assert await taken(workerlib.map(Scale, range(3), ONE, init={"factor": 2, "plus": 1})) == [1, 3, 5]
        who = await taken(workerlib.map(WhoAmI, range(100), Config(local=2, batch=1)))
        assert [item for item, _ in who] == list(range(100))
        assert {index for _, index in who} == {0, 1}
        joined = await workerlib.map_reduce(mapped.Joined, range(20), TWO, init=["-"])
        assert joined == "-".join(map(str, range(20)))

    check(scenario)


def test_workers_write_to_where_this_process_does_or_to_what_the_redirect_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a redirect a worker's stdout is that of this process; with one it is the file. They work in `cd`."""

    async def scenario() -> None:
        await taken(workerlib.map(mapped.write, ["hello"], ONE))
        config = Config(local=1, redirect_stdout=Redirect.append("out"), cd=str(tmp_path))
        await taken(workerlib.map(mapped.write, ["filed"], config))

    check(scenario)
    assert capfd.readouterr().out == "hello\n"
    assert (tmp_path / "out").read_text() == "filed\n"


# Bounds


def test_no_more_is_read_than_the_bound_allows() -> None:
    """While nobody takes results, at most `read_ahead` items are read; in steady state never more are waiting."""

    async def scenario() -> None:
        read = taken = 0

        def source() -> Iterator[int]:
            nonlocal read
            for n in range(200):
                read += 1
                assert read - taken <= 10
                yield n

        async with workerlib.map(mapped.square, source(), Config(local=2, read_ahead=10)) as results:
            async for _ in results:
                taken += 1
        assert read == taken == 200

    check(scenario)


def test_a_slow_item_amid_quick_ones_does_not_hold_up_its_batch() -> None:
    """When items become slow after batches have grown, a worker hands the rest back and others help."""

    async def scenario() -> None:
        pids = await taken(workerlib.map(mapped.slow_after_a_hundred, range(160), TWO))
        assert len(set(pids[120:])) == 2

    check(scenario)


def test_results_that_are_large_all_at_once_fit_into_messages() -> None:
    """Ten results of 8 MiB follow ten of nothing: no message becomes too long, though a batch of them would be."""

    async def scenario() -> None:
        config = Config(local=1, batch=20)
        sizes = [len(result) for result in await taken(workerlib.map(mapped.large_after_nine, range(20), config))]
        assert sizes == [0] * 10 + [8 << 20] * 10

    check(scenario)


# Errors


def test_an_error_names_its_item_and_carries_the_remote_traceback() -> None:
    """Results before it are given first; the cause is what the function raised."""

    async def scenario() -> None:
        results: list[int] = []
        with pytest.raises(ItemError, match=r"item 7 \(7\): ValueError: seven is not liked here") as caught:
            await collect(workerlib.map(mapped.no_sevens, range(100), TWO), results)
        assert results == [0, 1, 2, 3, 4, 5, 6]
        assert (caught.value.index, caught.value.item) == (7, 7)
        assert isinstance(caught.value.__cause__, ValueError)
        assert "in no_sevens" in caught.value.__cause__.remote_traceback  # type: ignore[attr-defined]
        with pytest.raises(ItemError, match=r"mapped\.OwnError: 0") as caught:
            await taken(workerlib.map(mapped.own_error, range(3), ONE))
        assert isinstance(caught.value.__cause__, RemoteError)
        with pytest.raises(ItemError, match=r"item 0 .*SystemExit"):
            await taken(workerlib.map(mapped.exit_now, range(3), ONE))

    check(scenario)


def test_errors_of_reductions() -> None:
    """An error of the mapping names its item; one of combining is itself when it is of no single item."""

    async def scenario() -> None:
        with pytest.raises(ItemError, match=r"item 7 .*seven"):
            await workerlib.map_reduce(mapped.no_sevens, range(100), TWO, combine=mapped.add)
        config = Config(local=1, batch=1)
        with pytest.raises(ValueError, match="these do not go together"):
            await workerlib.map_reduce(mapped.text, range(2), config, combine=mapped.raising_concatenate)

    check(scenario)


def test_items_and_results_of_the_wrong_type_are_refused() -> None:
    """The item is named, whether its type, its encoding, its result's type or its result's encoding is wrong."""

    async def scenario() -> None:
        with pytest.raises(
            ItemError, match=r"item 2 \('two'\): square: argument n: Expected `int`, got `str`"
        ) as caught:
            await taken(workerlib.map(mapped.square, [0, 1, "two", 3], ONE))  # type: ignore[list-item]
        assert isinstance(caught.value.__cause__, ArgumentError)
        with pytest.raises(ItemError, match=r"item 1 .*cannot travel between processes"):
            await taken(workerlib.map(mapped.square, [0, object(), 2], ONE))  # type: ignore[list-item]
        with pytest.raises(ItemError, match=r"item 0 .*returned something else than it declares") as caught:
            await taken(workerlib.map(mapped.wrong_result, range(3), ONE))
        with pytest.raises(ItemError, match=r"item 3 .*cannot be encoded") as caught:
            await taken(workerlib.map(mapped.no_result, range(5), ONE))
        assert isinstance(caught.value.__cause__, ResultError)

    check(scenario)


def test_an_error_of_the_source_is_raised_after_its_items() -> None:
    """What was read before is mapped and given; then the source's own error comes."""

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    async def scenario() -> None:
        results: list[int] = []
        with pytest.raises(OSError, match="the disk is gone"):
            await collect(workerlib.map(mapped.square, source(), TWO), results)
        assert results == [1, 4]

    check(scenario)


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (lambda n: n, {}, "a lambda of test_mapreduce has no name"),
        (Counter().update, {}, "another process would find something else"),
        (5, {}, "has no name by which another process could find it"),
        (mapped.takes_either, {}, "takes_either, item: this type cannot travel"),
        (mapped.gives_either, {}, "gives_either, result: this type cannot travel"),
        (mapped.square, {"init": [1]}, "only a MapWorker takes an init argument"),
    ],
)
def test_what_another_process_cannot_find_is_refused_at_once(function: Any, options: Any, text: str) -> None:
    """The call itself raises, before anything is spawned."""
    with pytest.raises(UsageError, match=text):
        workerlib.map(function, range(3), ONE, **options)


def test_bad_configurations_are_refused() -> None:
    """The field and its value are named."""
    with pytest.raises(UsageError, match=r"Config.local must be a whole number of at least 1, not 0"):
        Config(local=0)
    with pytest.raises(UsageError, match=r"Config.item_timeout_s must be a positive number, not -1"):
        Config(item_timeout_s=-1)
    with pytest.raises(UsageError, match="leave out batch=5"):
        Config(item_timeout_s=1, batch=5)
    with pytest.raises(UsageError, match=r"items must be an iterable"):
        workerlib.map(mapped.square, 5, ONE)  # type: ignore[call-overload]


def test_an_iteration_is_made_once() -> None:
    """Results that have been read are not read again."""

    async def scenario() -> None:
        results = workerlib.map(mapped.square, [1], ONE)
        assert await taken(results) == [1]
        with pytest.raises(UsageError, match="have been read already"):
            await taken(results)

    check(scenario)


def test_combining_and_mapping_must_be_of_one_kind() -> None:
    """A mixture of def and async def, a missing combine and a class that cannot combine are refused."""

    async def scenario() -> None:
        with pytest.raises(UsageError, match="must both be `def`, or both `async def`"):
            await workerlib.map_reduce(mapped.square, [1], ONE, combine=mapped.add_later)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="with combine="):
            await workerlib.map_reduce(mapped.square, [1], ONE)  # type: ignore[call-overload]
        with pytest.raises(UsageError, match="is a ReduceWorker"):
            await workerlib.map_reduce(Scale, [1], ONE)  # type: ignore[type-var]

    check(scenario)


def test_a_worker_that_cannot_come_up_ends_the_map() -> None:
    """The SpawnError tells what its init raised."""

    async def scenario() -> None:
        with pytest.raises(SpawnError, match="not today"):
            await taken(workerlib.map(mapped.RaisesInInit, range(5), TWO))
        with pytest.raises(SpawnError, match="argument factor is missing"):
            await taken(workerlib.map(Scale, range(5), TWO))

    check(scenario)


# Lost workers


def test_items_of_a_killed_worker_are_done_by_others() -> None:
    """Workers are killed again and again; every item has its result, and new workers have taken their places."""

    async def scenario() -> None:
        seen: list[Progress] = []
        killed: set[int] = set()
        pids = []
        async with workerlib.map(mapped.pid_of, range(400), TWO, on_progress=seen.append) as results:
            async for pid in results:
                pids.append(pid)
                if len(pids) in {10, 100, 200} and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
        assert len(pids) == 400
        assert killed
        assert seen[-1].lost == len(killed)
        assert len(set(pids)) >= 2

    check(scenario)


def test_an_item_that_kills_its_worker_is_named_after_its_retries() -> None:
    """The others' results are given; the item was tried three times and is the error."""

    async def scenario() -> None:
        results: list[int] = []
        with pytest.raises(
            ItemError, match=r"item 5 \(5\): each of 3 workers that had it was lost; the last one: killed by SIGKILL"
        ) as caught:
            await collect(workerlib.map(mapped.killed_by_five, range(50), Config(local=2, batch=10)), results)
        assert results == [0, 1, 2, 3, 4]
        assert isinstance(caught.value.__cause__, MapError)
        with pytest.raises(ItemError, match="the worker that had it was lost"):
            await taken(workerlib.map(mapped.killed_by_five, range(5, 9), Config(local=1, retries=0, batch=1)))

    check(scenario)


def test_an_item_that_kills_its_worker_once_is_done_in_the_second_try(tmp_path: Path) -> None:
    """One retry is enough for it, with a single worker, which is replaced."""

    async def scenario() -> None:
        paths = ["", str(tmp_path / "killed"), "", ""]
        assert await taken(workerlib.map(mapped.killed_once, paths, Config(local=1, retries=1))) == paths

    check(scenario)


@pytest.mark.parametrize("function", [mapped.sleep_if_negative, mapped.wait_if_negative])
def test_an_item_that_takes_too_long_is_named(function: Any) -> None:
    """Its worker is killed, even inside a plain function; results before it are given."""

    async def scenario() -> None:
        results: list[int] = []
        with pytest.raises(ItemError, match=r"item 3 \(-1\): TimeoutError: it took longer than 1 s") as caught:
            await collect(workerlib.map(function, [0, 1, 2, -1, 4], Config(local=2, item_timeout_s=1.0)), results)
        assert results == [0, 1, 2]
        assert isinstance(caught.value.__cause__, TimeoutError)

    check(scenario)


def test_a_long_computation_is_fine_in_a_plain_function_and_fatal_on_the_loop() -> None:
    """Heartbeats come from the worker's loop: a `def` does not keep them from it, an `async def` that blocks does."""

    async def scenario() -> None:
        settings = RpcSettings(heartbeat_interval_s=0.2, heartbeat_timeout_s=1.2)
        config = Config(local=1, retries=0, settings=settings)
        assert await taken(workerlib.map(mapped.nap, [2.5], config)) == [2.5]
        with pytest.raises(ItemError, match=r"item 0 \(600.0\): the worker that had it was lost"):
            await taken(workerlib.map(mapped.block_the_loop, [600.0], config))

    check(scenario)


def test_under_fire_every_item_has_its_result() -> None:
    """A worker is killed whenever both are up, four times: a reduction in order still has every item once."""

    async def scenario() -> None:
        shots = count = 0

        def source() -> Iterator[int]:
            nonlocal count
            while shots < 4:
                yield count
                count += 1

        def fire(progress: Progress) -> None:
            nonlocal shots
            if progress.workers == 2 and progress.lost == shots < 4 and progress.running:
                shots += 1
                os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

        result = await workerlib.map_reduce(
            mapped.text_slowly, source(), Config(local=2, batch=20), combine=mapped.concatenate, on_progress=fire
        )
        assert result == "".join(f"{n}," for n in range(count))
        assert shots == 4

    check(scenario)


# The end


def test_leaving_early_ends_the_workers() -> None:
    """After `async with` no worker is left, though one is inside a function that sleeps for ten minutes."""

    async def scenario() -> None:
        async with workerlib.map_unordered(mapped.sleep_if_negative, [1, -1, -1], TWO) as results:
            async for _ in results:
                assert len(workers_of(os.getpid())) > 0
                break

    check(scenario)


def test_a_loop_that_is_left_without_a_context_ends_the_workers_too() -> None:
    """The event loop closes the iterator that nobody has any more."""

    async def scenario() -> None:
        async for _ in workerlib.map(mapped.square, range(100), ONE):
            break
        for _ in range(400):
            if not workers_of(os.getpid()):
                return
            await asyncio.sleep(0.01)

    check(scenario)


def test_cancelling_ends_the_workers() -> None:
    """A task that waits for a result is cancelled: when it has ended, its workers have."""

    async def scenario() -> None:
        task = asyncio.create_task(taken(workerlib.map(mapped.sleep_if_negative, [-1] * 5, TWO)))
        while len(workers_of(os.getpid())) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    check(scenario)


def test_an_error_of_the_consumer_or_of_the_progress_callback_ends_the_workers() -> None:
    """Either is raised where the results are taken."""

    async def scenario() -> None:
        async def consume() -> None:
            async with workerlib.map(mapped.square, range(100), ONE) as results:
                async for _ in results:
                    raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await consume()

        def fail(progress: Progress) -> None:
            raise LookupError("no progress")

        with pytest.raises(LookupError, match="no progress"):
            await taken(workerlib.map(mapped.square, range(100), ONE, on_progress=fail))

    check(scenario)


def test_workers_die_with_a_master_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the process that maps leaves no worker."""
    pid = os.fork()
    if pid == 0:
        try:

            async def main() -> None:
                async for worker in workerlib.map(mapped.pid_of, iter(int, 1), TWO):
                    (tmp_path / str(worker)).touch()

            asyncio.run(main())
        finally:
            os._exit(1)
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, what="two workers")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(alive(worker) for worker in workers), what="the end of the workers")


# Progress and order of spawning


def test_progress_is_told() -> None:
    """The callback sees how many items are done of how many; the bar draws it."""

    async def scenario() -> None:
        seen: list[Progress] = []
        await taken(workerlib.map(mapped.square, list(range(500)), TWO, on_progress=seen.append))
        assert seen[-1].done == seen[-1].read == seen[-1].total == 500
        assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
        with open(os.devnull, "w") as nowhere:
            console = Console(file=nowhere, record=True, width=120, force_terminal=True)
            with ProgressBar("squares", console=console) as bar:
                await taken(workerlib.map(mapped.square, list(range(500)), TWO, on_progress=bar))
        drawn = console.export_text()
        assert "squares" in drawn
        assert "500/500" in drawn
        assert "workers" in drawn

    check(scenario)


def test_workers_can_be_spawned_one_by_one() -> None:
    """Results are the same; the second worker is not begun before the first is ready."""

    async def scenario() -> None:
        up: list[int] = []
        config = Config(local=3, spawn_one_by_one=True, batch=1)
        pids = set()
        async with workerlib.map(
            mapped.pid_of, itertools.count(), config, on_progress=lambda p: up.append(p.workers)
        ) as results:
            async for pid in results:
                pids.add(pid)
                if len(pids) == 3:
                    break
        assert up == sorted(up)

    check(scenario)
