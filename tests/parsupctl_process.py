"""parsupctl in a process of its own, for a parsupd that a test runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import parsupd_process

PARSUPCTL = str(Path(sys.executable).parent / "parsupctl")


@dataclass
class Controlled:
    """A parsupd that runs, and parsupctl for it."""

    daemon: parsupd_process.Daemon

    @property
    def runtime(self) -> Path:
        return self.daemon.runtime

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    def env(self) -> dict[str, str]:
        return {**os.environ, "PARSUP_RUNTIME_DIR": str(self.runtime)}

    def start_ctl(self, *args: str) -> subprocess.Popen[str]:
        """Starts parsupctl and returns at once."""
        return subprocess.Popen(
            [PARSUPCTL, *args], env=self.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ctl(self, *args: str, within_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs parsupctl to its end."""
        return subprocess.run(
            [PARSUPCTL, *args], env=self.env(), capture_output=True, text=True, timeout=within_s, check=False
        )

    def stop(self) -> int:
        """Stops it as systemd would; returns the exit status. Idempotent."""
        if self.daemon.process.poll() is None:
            self.daemon.process.send_signal(signal.SIGTERM)
            self.daemon.finish()
        return self.daemon.process.returncode


StartDaemon = Callable[[str], Controlled]
