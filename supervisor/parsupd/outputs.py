"""Where the standard streams of units go: to journald, to their log files, to a file of the user's, or nowhere."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parsupd.core.units import InstanceName, Output, OutputKind, UnitSpec
from parsupd.shell.journal_stream import JournalStreams
from parsupd.shell.log_pipes import LogPipes
from parsupd.shell.store import open_output
from workerlib import Redirect
from workerlib.redirects import Target
from workerlib.shell.journald import stream_name


@dataclass(frozen=True, slots=True)
class Redirects:
    """Of a worker's streams; to be closed when it has them."""

    stdout: Redirect
    stderr: Redirect

    def close(self) -> None:
        for redirect in (self.stdout, self.stderr):
            if redirect.target is Target.DESCRIPTOR:
                os.close(redirect.fd)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Gives descriptors. Those that it opens are to be closed when the unit has them."""

    logs_dir: Path
    streams: JournalStreams | None
    """Where the output goes that is meant for journald; None where there is none."""
    pipes: LogPipes
    has_readers: bool
    """Whether the daemon's own stderr is read by people, or by who runs the container: then units write there."""

    def kind(self, output: Output) -> OutputKind:
        """Where the journal is meant and there is none, files, unless somebody reads the daemon's own stderr."""
        if output.kind is OutputKind.JOURNAL and self.streams is None and not self.has_readers:
            return OutputKind.FILE
        return output.kind

    def open(self, spec: UnitSpec, instance: InstanceName, generation: int, which: int) -> int:
        """A descriptor for one life's stdout (1) or stderr (2); to be closed. Raises OSError."""
        output = spec.stdout if which == 1 else spec.stderr
        match self.kind(output):
            case OutputKind.INHERIT:
                return os.dup(which)
            case OutputKind.JOURNAL:
                return os.dup(self._journal_fd(instance, which))
            case OutputKind.FILE:
                return self.pipes.open(instance, generation, which, spec.log_settings)
            case OutputKind.NULL:
                return open_output(os.devnull)
            case OutputKind.APPEND:
                return open_output(output.path)

    def redirects(self, spec: UnitSpec, instance: InstanceName, generation: int) -> Redirects:
        """The same for a worker, which opens files of the user's itself. Raises OSError."""

        def redirect(output: Output, which: int) -> Redirect:
            match self.kind(output):
                case OutputKind.NULL:
                    return Redirect.dev_null()
                case OutputKind.APPEND:
                    return Redirect.append(output.path)
                case _:
                    return Redirect.descriptor(self.open(spec, instance, generation, which))

        stdout = redirect(spec.stdout, 1)
        try:
            return Redirects(stdout, redirect(spec.stderr, 2))
        except BaseException:
            Redirects(stdout, Redirect.dev_null()).close()
            raise

    def variables(self, spec: UnitSpec, instance: InstanceName) -> dict[str, str]:
        """Tells a unit whose stderr is a stream of the journal so, in systemd's way."""
        if self.kind(spec.stderr) is not OutputKind.JOURNAL or (fd := self._journal_fd(instance, 2)) == 2:
            return {}  # where it is the daemon's stderr, it has the daemon's own variable
        return {"JOURNAL_STREAM": stream_name(fd)}

    def _journal_fd(self, instance: InstanceName, which: int) -> int:
        """A stream of the journal, else the daemon's stderr: where its own records go."""
        fd = self.streams.fd(instance, which) if self.streams is not None else None
        return 2 if fd is None else fd

    def kept(self, spec: UnitSpec) -> tuple[bool, str, list[str]]:
        """Where to read: whether in the journal, in which directory of log files ("" for none), which other files."""
        outputs = (spec.stdout, spec.stderr)
        own = any(self.kind(output) is OutputKind.FILE for output in outputs)
        files = [output.path for output in outputs if output.kind is OutputKind.APPEND]
        return self.streams is not None, str(self.logs_dir) if own else "", list(dict.fromkeys(files))

    def configure(self, specs: Mapping[InstanceName, UnitSpec]) -> None:
        """The keys of the log files of all instances, as they are from now on."""
        self.pipes.configure({name: spec.log_settings for name, spec in specs.items()})

    def recover(self, specs: Mapping[InstanceName, UnitSpec]) -> None:
        """Goes on with the pipes that an earlier daemon has opened."""
        self.pipes.recover({name: spec.log_settings for name, spec in specs.items()})

    def close(self) -> None:
        """Lets go of everything; units go on with what they have. May be called twice."""
        self.pipes.close()
        if self.streams is not None:
            self.streams.close()
