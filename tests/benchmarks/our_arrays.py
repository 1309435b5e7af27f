"""What is served to measure arrays: a file of its own, as importing numpy takes longer than some cases do."""

from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt

from workerlib import pipe


class Arrays:
    @pipe
    async def arrays(self, count: int, size: int) -> AsyncIterator[npt.NDArray[np.float64]]:
        array = np.ones(size // 8)
        for _ in range(count):
            yield array
