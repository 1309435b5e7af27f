"""What units have left behind: children of the daemon, which is subreaper, that nobody has started here.

The kernel tells nobody who comes to be an orphan, and lists all children or none. With a thousand units that takes half
a millisecond, so one list does for all that is to be known in a turn of the loop, unless a process has ended since.
"""

from collections.abc import Callable, Collection

from parsupd.shell.kernel import Kernel
from parsupd.shell.leftovers import Tag


class Orphans:
    """Those of one daemon."""

    def __init__(
        self, kernel: Kernel, known: Collection[int], call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        """`known` are the pids of the children that are none: it is looked at again each time."""
        self._kernel = kernel
        self._known = known
        self._call_soon = call_soon
        self._tags: dict[int, Tag | None] = {}
        self._is_fresh = False

    def __contains__(self, pid: int) -> bool:
        """As of the last list."""
        return pid in self._tags

    def outdate(self) -> None:
        """A process may have ended: whom it has left behind has come to us by now."""
        self._is_fresh = False

    def drop(self, pid: int) -> None:
        """It was reaped, or is no orphan any more."""
        self._tags.pop(pid, None)

    def all(self) -> frozenset[int]:
        """Their pids, also of those that have ended and are not reaped yet."""
        if not self._is_fresh:
            ours = self._kernel.children().difference(self._known)
            self._tags = {pid: self._tags[pid] if pid in self._tags else self._kernel.tag_of(pid) for pid in ours}
            self._is_fresh = True
            self._call_soon(self.outdate)
        return frozenset(self._tags)

    def may_lead_to(self, tag: Tag) -> bool:
        """Whether any of them has this tag, or may have descendants with it."""
        return any(own is None or own == tag for own in self._tags.values())

    def of(self, tag: Tag) -> frozenset[int]:
        """Those with this tag, and the descendants with it of those that have none.

        One that is just ending has no environment any more, and may still have children that do.
        """
        silent = frozenset(pid for pid, own in self._tags.items() if own is None)
        below = self._kernel.descendants(silent) if silent else silent
        roots = frozenset(pid for pid, own in self._tags.items() if own == tag)
        return roots.union(pid for pid in below if self._kernel.tag_of(pid) == tag)

    def within(self, group: int) -> frozenset[int]:
        """Those that are in this process group, and their living descendants that are."""
        roots = frozenset(pid for pid in self.all() if self._kernel.group_of(pid) == group)
        below = filter(self._kernel.is_running, self._kernel.descendants(roots) if roots else roots)
        return roots.union(pid for pid in below if self._kernel.group_of(pid) == group)
