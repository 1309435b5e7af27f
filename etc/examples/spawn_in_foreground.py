"""A worker that does not detach: it stays a child of this program, which sees its output and its exit status.

Lines arrive as `[WORKER name STDOUT]: ...`, or at callbacks of your own. A Ctrl-C at the terminal reaches both. When
the worker ends it is reaped, whether or not anybody waits for it.
"""

import signal

import workerlib
from workerlib import ShutdownOn


class Printer(workerlib.Worker):
    @workerlib.rpc
    async def print(self, text: str) -> None:
        print(text)


async def main() -> None:
    connection, process = await Printer.spawn_in_foreground(
        name="printer", shutdown_on=ShutdownOn.CONNECTION_CLOSED, on_stderr=lambda _name, _line: None
    )
    async with connection:
        await connection.run(Printer.print, "HELLO")
        await connection.run(Printer.print, "HELLO2")
    print("it ended with", await process.wait())

    connection, process = await Printer.spawn_in_foreground(name="another", shutdown_on=ShutdownOn.CONNECTION_CLOSED)
    process.send_signal(signal.SIGKILL)
    print("the other one lost its connection:", await connection.wait_closed())
    print("and ended with", await process.wait(), "for the signal")


if __name__ == "__main__":
    workerlib.start_app(main)  # runs main, or is the worker
