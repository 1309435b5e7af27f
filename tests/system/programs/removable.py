"""A program whose file is taken away while it runs. Prints a line for each step, and goes on when it is given one."""

import sys

import workerlib
from workerlib import Redirect, ShutdownOn, SpawnError


class Adder(workerlib.Worker):
    @workerlib.rpc
    async def add_one(self, n: int) -> int:
        return n + 1


async def spawn() -> workerlib.Connection:
    null = Redirect.dev_null()
    return await Adder.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=null,
        redirect_stderr=null,
        on_stderr=lambda _name, _line: None,
    )


async def main() -> None:
    first = await spawn()
    print("spawned", flush=True)
    sys.stdin.readline()  # the file is removed meanwhile
    print(await first.run(Adder.add_one, 1), flush=True)
    try:
        await spawn()
    except SpawnError as error:
        print(error.stage.value, error.cause, error.stderr[-1], flush=True)
    sys.stdin.readline()  # it is back
    second = await spawn()
    print(await second.run(Adder.add_one, await first.run(Adder.add_one, 1)), flush=True)


if __name__ == "__main__":
    workerlib.start_app(main)
