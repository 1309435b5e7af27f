"""Under a real systemd: calls to workers, new ones and those under way, while parsupd or the worker is replaced."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from machine_process import INSTALLED, Machine
from machine_service import SERVICE, Service, installed

JOB = """
import asyncio, os
from workerlib import Worker, rpc

class Counter(Worker):
    async def init(self) -> None:
        self.count = 0

    @rpc
    async def add(self, n: int) -> int:
        self.count += n
        return self.count

    @rpc
    async def slowly(self, path: str) -> int:
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        return os.getpid()

    @rpc(idempotent=True)
    async def slowly_again(self, path: str) -> int:
        return await self.slowly(path)
"""
UNITS = """
[unit.counter]
type = "worker"
worker = "counter:Counter"
working_directory = "/srv/jobs"
instances = 2
restart_sec = 0
"""
HEAD = 'import asyncio, json, os, sys\nsys.path.insert(0, "/srv/jobs")\nSOCKET = "/run/parsupd/parsupd.sock"\n'

STOCK = """
import Pyro5.api
names = Pyro5.api.Proxy("PYRO:Pyro.NameServer@./u:" + SOCKET)
with Pyro5.api.Proxy(names.lookup("counter@1")) as counter:
    counter._pyroBind()
    print("under way", flush=True)
    print(json.dumps(counter.slowly("/run/go-on")))
"""

STEADY = """
from counter import Counter
from workerlib import Managed, WhenLost

async def main():
    async with Managed.unit("counter@2", supervisor=SOCKET, when_lost=WhenLost.FAIL) as managed:
        print("under way", flush=True)
        calls = 0
        while not os.path.exists("/run/go-on"):
            calls += 1
            assert await managed.run(Counter.add, 1) == calls
        print(json.dumps(calls))

asyncio.run(main())
"""

POLICIES = """
from counter import Counter
from workerlib import ConnectionLost, Managed, WhenLost

async def outcome(call):
    try:
        return await call
    except ConnectionLost:
        return "lost"

async def main():
    fail, wait, retry = [Managed.unit("counter@1", supervisor=SOCKET, when_lost=when) for when in WhenLost]
    async with fail, wait, retry:
        lost = asyncio.ensure_future((await fail.connection()).wait_closed())
        under_way = [
            asyncio.ensure_future(outcome(managed.run(function, "/run/go-on")))
            for managed in (fail, wait, retry) for function in (Counter.slowly, Counter.slowly_again)
        ]
        await (await retry.connection()).ping()
        print("under way", flush=True)
        await lost
        new = [asyncio.ensure_future(outcome(managed.run(Counter.add, 1))) for managed in (fail, wait, retry)]
        print(json.dumps([await asyncio.gather(*under_way), await asyncio.gather(*new)]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def service(machine: Machine) -> Iterator[Service]:
    with installed(machine, UNITS, {"counter": JOB}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_inside() -> None:
    """In place of the folder's: the service is the module's."""


class Client:
    """A program inside that says when its calls are under way, and in the end what became of them."""

    def __init__(self, machine: Machine, program: str) -> None:
        self._machine = machine
        machine.run("rm", "-f", "/run/go-on")
        argv = [*machine.enter(), f"{INSTALLED}/bin/python", "-c", HEAD + program]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "under way\n"

    def result(self) -> Any:
        self._machine.write("/run/go-on", "")
        out, _ = self._process.communicate(timeout=60)
        self._machine.run("rm", "/run/go-on")
        assert self._process.returncode == 0
        return json.loads(out)


def test_what_is_under_way_is_answered_over_restart_and_crash(service: Service) -> None:
    """A stock client's call and a stream of new ones go on with the worker, whatever becomes of its parsupd."""
    stock, steady = Client(service.machine, STOCK), None
    pid = service.lives()["counter@1"][0]
    first = service.show("MainPID")
    service.systemctl("restart", SERVICE)
    service.systemctl("kill", "--kill-who=main", "-s", "KILL", SERVICE)
    service.machine.wait_until(lambda: service.show("MainPID") not in {"0", first}, within_s=30)
    service.wait_active("2 units: 2 ready")
    assert stock.result() == pid
    steady = Client(service.machine, STEADY)
    service.systemctl("restart", SERVICE)
    service.wait_active("2 units: 2 ready")
    assert steady.result() > 10


@pytest.mark.parametrize("with_parsupd", [False, True], ids=["worker", "worker and parsupd"])
def test_calls_of_a_worker_that_is_killed_follow_their_policy(with_parsupd: bool, service: Service) -> None:
    """FAIL fails all; WAIT has new calls wait for the next life; RETRY also repeats what is declared idempotent."""
    client = Client(service.machine, POLICIES)
    pid, generation = service.lives()["counter@1"]
    service.machine.run("kill", "-KILL", *([service.show("MainPID")] if with_parsupd else []), str(pid))
    service.machine.wait_until(
        lambda: service.ctl("list", check=False) and service.lives()["counter@1"][1] == generation + 1, within_s=30
    )
    service.wait_active("2 units: 2 ready")
    under_way, new = client.result()
    lives = service.lives()
    assert under_way == [*["lost"] * 5, lives["counter@1"][0]]
    assert new[0] == "lost"
    assert sorted(new[1:]) == [1, 2]


def test_the_state_is_kept_where_the_directory_is_lost(service: Service) -> None:
    """Without its directory, a parsupd that is killed has its state in a memory file: workers go on, and all answer."""
    machine = service.machine
    before, first = service.lives(), service.show("MainPID")
    machine.run("sh", "-c", "rm /run/parsupd/state /run/parsupd/parsupd.sock /run/parsupd/lock")
    service.systemctl("kill", "--kill-who=main", "-s", "KILL", SERVICE)
    machine.wait_until(lambda: service.show("MainPID") not in {"0", first}, within_s=30)
    service.wait_active("2 units: 2 ready")
    assert service.lives() == before
    assert machine.journal(f"_PID={service.show('MainPID')}", "PARSUP_EVENT=ending_leftovers") == []
    service.systemctl("restart", SERVICE)
    assert service.lives() == before
    assert service.show("NFileDescriptorStore") == "4"  # the control socket, the state, and a pidfd of each worker
