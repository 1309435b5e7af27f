"""A worker's module that cannot be imported."""

from workerlib import Worker

raise RuntimeError("this module is broken on purpose")


class Never(Worker): ...
