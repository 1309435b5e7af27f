"""A program with `start_app`, which does what its first argument says. Its workers are the program itself."""

import asyncio
import functools
import sys

import workerlib
from workerlib import Redirect, RpcSettings, ShutdownOn, State, UsageError, expert

NULL = Redirect.dev_null()
BEGAN_AS = State.get()


class Job(workerlib.Worker):
    @workerlib.rpc
    async def began(self) -> list[str]:
        """How this process was started; its class knows whether its module was loaded twice."""
        return [
            __name__,
            str(BEGAN_AS),
            str(State.get()),
            " ".join(sys.argv[1:]),
            type(asyncio.get_running_loop()).__module__,
        ]

    @workerlib.rpc
    async def nested(self) -> list[str]:
        async with await spawn(name="inner") as inner:
            return await inner.run(Job.began)

    @workerlib.rpc
    async def served(self) -> RpcSettings:
        async with await Job.serve() as here, await here.handle.connect() as connection:
            return await connection.worker_settings()


async def spawn(name: str = "job", **options: object) -> workerlib.Connection:
    return await Job.spawn(
        name=name, shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=NULL, redirect_stderr=NULL, **options
    )


async def began() -> str:
    async with await spawn() as job:
        print("master", BEGAN_AS, State.get(), type(asyncio.get_running_loop()).__module__)
        print("worker", *await job.run(Job.began))
        print("nested", *await job.run(Job.nested))
    return "the result of main"


def show(where: str, settings: RpcSettings) -> None:
    print(where, settings.handshake_timeout_s, settings.max_message_size)


async def settings() -> None:
    async with await spawn() as job, await Job.serve() as here, await here.handle.connect() as there:
        show("spawned, here", job.settings)
        show("spawned, there", await job.worker_settings())
        show("served, here", there.settings)
        show("served, there", await there.worker_settings())
        show("served by the spawned", await job.run(Job.served))
    async with await spawn(settings=RpcSettings(handshake_timeout_s=9)) as other:
        show("of its own, there", await other.worker_settings())


async def refusals() -> None:
    for attempt in (lambda: workerlib.start_app(began), lambda: workerlib.start_app(began)):
        try:
            attempt()
        except UsageError as error:
            print(error)
    try:
        await expert.start_master_server(worker_command_args=["worker"])
    except UsageError as error:
        print(error)


async def failing() -> None:
    raise LookupError("main raises")


async def mapping() -> None:
    async with workerlib.map(square, range(5), workerlib.Config(local=1)) as squares:
        print([n async for n in squares])


def square(n: int) -> int:
    return n * n


if __name__ == "__main__":
    chosen = functools.partial(globals()[sys.argv[1]]) if sys.argv[1] in globals() else began
    app_settings = RpcSettings(handshake_timeout_s=1.5, max_message_size=1 << 20) if sys.argv[1] == "settings" else None
    print("returned", workerlib.start_app(chosen, settings=app_settings))
