"""The files that the daemon's state is kept in: whole states, and changes that are appended to them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parsupd.shell.state_file import StateFile, joined, split


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_what_was_saved_last_is_found_in_both(tmp_path: Path, memfd: int) -> None:
    """A whole state replaces what was there, with its changes; the next process finds the same."""
    file = StateFile(tmp_path / "state", memfd)
    for parts in ([b"a long state at first", b"1", b"22"], [b"short"], [b"third", b"1"]):
        file.save(parts[0])
        for part in parts[1:]:
            file.append(part)
        assert list(StateFile(tmp_path / "state", memfd).candidates()) == [parts, parts]
    file.remove()
    assert list(file.candidates()) == [[]]


@pytest.mark.parametrize("left", range(len(joined(b"whole", b"change"))))
def test_a_part_that_is_not_whole_is_none(left: int) -> None:
    """Wherever the process was killed while it wrote, what was there before is found."""
    data = joined(b"whole", b"change")[:left]
    assert split(data) == ([b"whole"] if left >= len(joined(b"whole")) else [])


def test_damage_ends_the_row() -> None:
    """What follows it cannot be told from rubbish."""
    data = bytearray(joined(b"one", b"two", b"three"))
    data[len(joined(b"one")) + 12] ^= 1
    assert split(bytes(data)) == [b"one"]


def test_a_file_that_was_removed_is_noticed(tmp_path: Path, memfd: int) -> None:
    """An append says so, and the copy in memory has it all the same."""
    file = StateFile(tmp_path / "state", memfd)
    file.save(b"whole")
    (tmp_path / "state").unlink()
    with pytest.raises(FileNotFoundError):
        file.append(b"change")
    assert list(file.candidates()) == [[b"whole", b"change"]]
