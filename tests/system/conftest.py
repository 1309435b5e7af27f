"""Fixtures of the tests with real processes."""

from collections.abc import Iterator
from contextlib import ExitStack

import parsupd_process
import pytest
from parsupctl_process import Controlled, StartDaemon
from support import ENGINES
from twins import TWINS, use_python


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDaemon]:
    """`daemon(config_text)` starts a parsupd and returns when it can be called. It is stopped after the module's tests.

    The text needs no `[parsupd]` table: runtime and state directory are given.
    """
    with ExitStack() as stack:

        def start(config: str) -> Controlled:
            path = tmp_path_factory.mktemp("parsupd") / "parsupd.toml"
            path.write_text(config)
            running = Controlled(stack.enter_context(parsupd_process.parsupd(path, "--log", "json")))
            stack.callback(running.stop)
            running.daemon.wait_up()
            return running

        yield start


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The event loop of both ends, for `run_async`."""
    return request.param


@pytest.fixture(params=TWINS)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In which calls are made and answered: as always, or as where workerlib's C part was not built."""
    if request.param == "Python":
        use_python(monkeypatch)
    return request.param
