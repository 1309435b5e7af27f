"""A stream that the worker writes by hand, from wherever it likes, until the caller aborts it.

A generator (`pipe`) is resumed at the reader's pace; a DirectWriter is written to when something happens, here by a
task that outlives the call. What is written before the function returns is delivered first.
"""

import asyncio

import workerlib
from workerlib import DirectWriter, Redirect, ShutdownOn


class Ticker(workerlib.Worker):
    async def init(self) -> None:
        self.ended = ""

    @workerlib.direct_pipe
    async def ticks(self, out: DirectWriter[str], every_s: float) -> None:
        out.write("the first, written before the function has returned")
        self.task = asyncio.create_task(self._go_on(out, every_s))

    async def _go_on(self, out: DirectWriter[str], every_s: float) -> None:
        number = 0
        while out.write(f"tick {number}"):  # False: nobody reads any more
            number += 1
            await asyncio.sleep(every_s)
        self.ended = out.closed or ""

    @workerlib.rpc
    async def how_it_ended(self) -> str:
        await self.task
        return self.ended


async def main() -> None:
    async with await Ticker.spawn(
        shutdown_on=ShutdownOn.CONNECTION_CLOSED,
        redirect_stdout=Redirect.dev_null(),
        redirect_stderr=Redirect.dev_null(),
    ) as connection:
        stream = connection.run(Ticker.ticks, 0.01)
        async for text in stream:
            print(text)
            if text == "tick 3":
                stream.abort("four are enough")
                break
        print("the writer was told:", await connection.run(Ticker.how_it_ended))


if __name__ == "__main__":
    asyncio.run(main())
