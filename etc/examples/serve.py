"""A worker without a process of its own: served in this program, and called as any other.

The one connection goes over a Unix socket in this user's private directory; another process that is given the handle
could open the same. The `state` of a connection is what `connected` returns for what the client gave to `connect`.
"""

import asyncio

import workerlib


class Counter(workerlib.Worker):
    async def init(self, start: int) -> None:
        self.value = start

    async def connected(self, session: workerlib.Session, who: str) -> str:
        print(f"{who} has connected, as user {session.peer.uid}")  # the kernel says so, not the client
        return who

    @workerlib.rpc
    async def increment(self) -> str:
        self.value += 1
        return f"{self.value} for {workerlib.current_session().state}"


async def main() -> None:
    async with await Counter.serve(40) as served:
        async with await served.handle.connect("ada") as ada, await served.handle.connect("bob") as bob:
            print(await ada.run(Counter.increment))
            print(await bob.run(Counter.increment))
        print(f"the object itself is at hand, too: {served.worker.value}")


if __name__ == "__main__":
    asyncio.run(main())
