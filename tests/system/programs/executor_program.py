"""Submits calls and ends without `shutdown`: they are done first, and the workers are gone."""

import os
import time

from workerlib import Executor


def slowly(n: int) -> int:
    time.sleep(0.2)
    return n


if __name__ == "__main__":
    executor = Executor(1)
    for number in range(3):
        executor.submit(slowly, number).add_done_callback(lambda done: print("done", done.result(), flush=True))
    print("worker of", os.getpid(), flush=True)
