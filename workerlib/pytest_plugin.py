"""The pytest plugin: fixtures `spawned` and `no_leaks`, and the ini option `workerlib_no_leaks`.

Loaded in every run of pytest in an environment with workerlib, so nothing is imported before a test asks for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workerlib.testing import Spawner


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "workerlib_no_leaks",
        "fail every test that leaves file descriptors, threads, processes or zombies (the fixture no_leaks)",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getini("workerlib_no_leaks"):
        config.pluginmanager.register(_EveryTest(), "workerlib_no_leaks")


class _EveryTest:
    """Registered only when it is wanted: an automatic fixture costs every test something."""

    @pytest.fixture(autouse=True)
    def _checked_for_leaks(self, no_leaks: None) -> None:
        """Every test uses no_leaks."""


@pytest.fixture
def spawned() -> "Iterator[Spawner]":
    """`spawned(MyWorker, argument)` is a blocking connection to a worker in a process of its own.

    The worker ends with the test, which fails when a process of it is left. See workerlib.testing.Spawner; tests that
    have an event loop use the async context workerlib.testing.spawned.
    """
    from workerlib.testing import LeakError, Spawner  # noqa: PLC0415 - only tests that use it pay for it

    spawner = Spawner()
    yield spawner
    try:
        spawner.close()
    except LeakError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test fails when it leaves file descriptors, threads, processes or zombies; see workerlib.testing.no_leaks.

    For single tests: `@pytest.mark.usefixtures("no_leaks")`. Fixtures of the test are taken down before the check.
    Processes that have detached become children of pytest, to be seen; what has ended is reaped, what lives is killed
    after the test has failed.
    """
    from workerlib.testing import LeakError, adopt_orphans, no_leaks  # noqa: PLC0415 - only tests that use it pay

    adopt_orphans()
    checked = no_leaks(reap=True)
    with checked:
        yield
        try:
            checked.check()
        except LeakError as error:
            checked.end_processes()
            pytest.fail(str(error), pytrace=False)
