"""Statistics of many random numbers: workers make blocks of them and combine what they found, in one reduction.

Mean and variance of two samples can be combined into those of both, so no number ever travels: a block goes out as its
seed and comes back as three figures.
"""

import asyncio
import random
from dataclasses import dataclass

import workerlib

BLOCKS = 40


@dataclass
class Stats:
    """A sample, as far as its mean and variance go."""

    count: int
    mean: float
    squares: float  # the sum of the squared distances from the mean


class Sampler(workerlib.ReduceWorker[int, Stats]):
    async def init(self, size: int) -> None:
        """Gets what `init=` says, once in each worker."""
        self.size = size

    def map(self, item: int) -> Stats:
        source = random.Random(item)  # noqa: S311 - statistics, not secrets
        numbers = [source.random() for _ in range(self.size)]
        mean = sum(numbers) / self.size
        return Stats(self.size, mean, sum((number - mean) ** 2 for number in numbers))

    def combine(self, first: Stats, second: Stats) -> Stats:
        count = first.count + second.count
        apart = second.mean - first.mean
        return Stats(
            count,
            first.mean + apart * second.count / count,
            first.squares + second.squares + apart**2 * first.count * second.count / count,
        )


async def main() -> None:
    stats = await workerlib.map_reduce(Sampler, range(BLOCKS), workerlib.Config(local=2), init={"size": 5000})
    assert stats is not None, "there were blocks"
    print(f"{stats.count} numbers, mean {stats.mean:.3f}, variance {stats.squares / stats.count:.4f}")
    print("expected       mean 0.500, variance 0.0833")


if __name__ == "__main__":
    asyncio.run(main())
