"""parsupd as an installed service of a throw-away machine."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from machine_process import INSTALLED, Machine

SERVICE = "parsupd.service"


class Service:
    """parsupd as an installed service."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def ctl(self, *argv: str, check: bool = True) -> Any:
        out = self.machine.run(f"{INSTALLED}/bin/parsupctl", *argv, check=check).stdout
        return json.loads(out) if "--json" in argv else out

    def show(self, name: str) -> str:
        return self.machine.show(SERVICE, name)[name]

    def systemctl(self, *argv: str, check: bool = True) -> None:
        self.machine.run("systemctl", *argv, check=check)

    def configure(self, units: str) -> None:
        self.machine.write("/etc/parsupd/units.d/test.toml", units)

    def lives(self) -> dict[str, tuple[int, int]]:
        """Pid and generation of each instance."""
        return {one["name"]: (one["pid"], one["generation"]) for one in self.ctl("list", "--json")}

    def wait_active(self, status: str = "") -> None:
        def there() -> bool:
            shown = self.machine.show(SERVICE, "ActiveState", "StatusText")
            return shown["ActiveState"] == "active" and status in shown["StatusText"]

        try:
            self.machine.wait_until(there, within_s=30, what=f"active, {status!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.machine.show(SERVICE, 'ActiveState', 'StatusText')}") from None


@contextmanager
def installed(machine: Machine, units: str, jobs: Mapping[str, str]) -> Iterator[Service]:
    """A service with these units and modules in /srv/jobs, started; stopped and removed afterwards."""
    machine.run(f"{INSTALLED}/bin/parsupd", "install")
    for name, text in jobs.items():
        machine.write(f"/srv/jobs/{name}.py", text)
    running = Service(machine)
    running.configure(units)
    running.systemctl("start", SERVICE)
    try:
        yield running
    finally:
        running.systemctl("stop", "parsupd.socket", SERVICE, check=False)
        machine.run(f"{INSTALLED}/bin/parsupd", "uninstall")
        left = (
            "/etc/parsupd",
            "/srv/jobs",
            "/etc/systemd/system/parsupd.service.d",
            "/var/lib/parsupd",
            "/run/parsupd",
        )
        machine.run("rm", "-rf", *left)
        running.systemctl("daemon-reload")
        running.systemctl("reset-failed")
