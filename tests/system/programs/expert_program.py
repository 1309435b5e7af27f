"""A program that starts its workers as itself: `expert_program.py` is the master, `expert_program.py job worker` a worker."""

import asyncio
import sys

from workerlib import Redirect, ShutdownOn, Worker, expert, rpc


class Echo(Worker):
    @rpc
    async def echo(self, text: str) -> str:
        return text.upper()

    @rpc
    async def argv(self) -> list[str]:
        return sys.argv


async def main() -> None:
    await expert.start_master_server(worker_command_args=["job", "worker"])
    null = Redirect.dev_null()
    async with await Echo.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
    ) as connection:
        print(await connection.run(Echo.echo, "hello"))
        print(await connection.run(Echo.argv))


if __name__ == "__main__":
    if sys.argv[1:3] == ["job", "worker"]:
        sys.exit(expert.worker_command())
    asyncio.run(main())
