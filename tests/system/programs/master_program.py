"""A master that gets stuck at one stage of a spawn, or after it, to be killed there. Prints what it knows, a line each."""

import asyncio
import sys

from workers import NeverInitialised, Sum

from workerlib import Redirect, ShutdownOn, Worker
from workerlib.runtime import current_master
from workerlib.shell.program import absolute_sys_path
from workerlib.spawn_options import SpawnOptions

NULL = Redirect.dev_null()


async def spawn(worker: type[Worker], *args: object, shutdown_on: ShutdownOn) -> object:
    return await worker.spawn(*args, shutdown_on=shutdown_on, redirect_stdout=NULL, redirect_stderr=NULL)


async def main(stage: str, argument: str) -> None:
    if stage == "importing":
        master = await current_master()
        options = SpawnOptions(
            reference="hanging_module:Any",
            name="stuck",
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            sys_path=absolute_sys_path(),
            on_stderr=lambda _name, line: print(line, flush=True),
        )
        await master.spawn(options)
    elif stage.startswith("initialising"):
        life = stage.partition(":")[2] or "connection_closed"
        await spawn(NeverInitialised, argument, shutdown_on=ShutdownOn(life))
    else:
        worker = await spawn(Sum, shutdown_on=ShutdownOn(stage))
        print("ready", getattr(worker, "uri", ""), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
