"""A worker that logs from the first moment on."""

import logging

from workerlib import Worker, rpc

log = logging.getLogger(__name__)
log.info("while importing")


class Chatty(Worker):
    async def init(self) -> None:
        log.info("in init")
        log.warning("with fields", extra={"order": 5})

    @rpc
    async def say(self, text: str, count: int) -> None:
        for n in range(count):
            log.info("%s %d", text, n)

    @rpc
    async def fail_in_log(self) -> None:
        try:
            _ = 1 // 0
        except ZeroDivisionError:
            log.exception("failed")
