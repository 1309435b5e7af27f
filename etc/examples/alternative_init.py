"""A program with a command line of its own that starts its workers as itself (the Expert interface).

    alternative_init.py greet NAME      what a user calls
    alternative_init.py internal worker what its workers are started with, visible in `ps`

Most programs need none of this: see add_numbers.py. It is for those that are installed as one executable, or must do
something of their own before a worker begins.
"""

import asyncio
import sys

import workerlib
from workerlib import Redirect, ShutdownOn, expert


class Greeter(workerlib.Worker):
    @workerlib.rpc
    async def greet(self, name: str) -> str:
        return f"Hello {name}, from a worker that was started with {' '.join(sys.argv[1:3])!r}"


async def greet(name: str) -> None:
    # Before the first spawn; after the program's own name come these words, and then who started whom.
    await expert.start_master_server(worker_command_args=["internal", "worker"])
    async with await Greeter.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as connection:
        print(await connection.run(Greeter.greet, name))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["internal", "worker", *_]:
            return expert.worker_command()  # before an event loop or a thread exists
        case ["greet", name]:
            asyncio.run(greet(name))
            return 0
        case _:
            print("usage: alternative_init.py greet NAME", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
