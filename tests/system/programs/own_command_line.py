"""A program with a command line of its own: `master WORKER_KIND named|unnamed WORD...` spawns workers that are started
with those words; `by-hand [MISTAKE]` is a worker by the manual path, anything else one by `worker_command`."""

import asyncio
import sys
import threading

import workerlib
from workerlib import Redirect, ShutdownOn, SpawnError, expert

NULL = Redirect.dev_null()


class Adder(workerlib.Worker):
    @workerlib.rpc
    async def add_one(self, n: int) -> int:
        return n + 1

    @workerlib.rpc
    async def argv(self) -> list[str]:
        return sys.argv[1:]

    @workerlib.rpc
    async def nested(self) -> str:
        return await ask("inner")


async def ask(name: str) -> str:
    async with await spawn(name) as adder:
        return f"{await adder.run(Adder.argv)} {await adder.run(Adder.add_one, 2)}"


async def spawn(name: str) -> workerlib.Connection:
    return await Adder.spawn(
        name=name,
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=NULL,
        redirect_stderr=NULL,
        on_stderr=lambda _name, _line: None,
    )


async def master(kind: str, named: str, words: list[str]) -> None:
    await expert.start_master_server(worker_command_args=words, pass_name=named == "named")
    try:
        async with await spawn("adder") as adder:
            print(f"{await adder.run(Adder.argv)} {await adder.run(Adder.add_one, 2)}")
            print(await adder.run(Adder.nested))
    except SpawnError as error:
        print(" ".join(error.stderr))


def by_hand(mistake: str) -> int:
    if mistake == "loop":
        asyncio.run(in_loop())
    if mistake == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if mistake == "stdin":
        sys.stdin.buffer.read()
    env = expert.worker_init_before_async()
    if mistake == "twice":
        expert.worker_init_before_async()
    return asyncio.run(serve(env, mistake))


async def in_loop() -> None:
    expert.worker_init_before_async()


async def serve(env: expert.WorkerEnv, mistake: str) -> int:
    if mistake == "master":
        await workerlib.runtime.current_master()
    if mistake == "explicit":
        await expert.start_master_server(worker_command_args=["worker"])
    hosted = await expert.start_worker_server(env, Adder)
    return await hosted.wait()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["master", kind, named, *words]:
            asyncio.run(master(kind, named, words))
            return 0
        case ["by-hand", *rest]:
            return by_hand(rest[0] if rest else "")
        case _:
            return expert.worker_command()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
