"""The door to inotify: tells that something in a directory has changed, without looking again and again."""

import ctypes
import functools
import os

_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE_SELF = 0x8, 0x80, 0x100, 0x400


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def watch(folder: str) -> int:
    """A descriptor, to be closed, that is readable when a file in the directory was written or has come to be.

    Raises OSError when there is no such directory, or the kernel watches too many already.
    """
    libc = _libc()
    fd = int(libc.inotify_init1(_CLOEXEC_NONBLOCK))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    mask = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF
    if libc.inotify_add_watch(fd, os.fsencode(folder), mask) < 0:
        errno = ctypes.get_errno()
        os.close(fd)
        raise OSError(errno, os.strerror(errno), folder)
    return fd


def drain(fd: int) -> None:
    """Takes what has happened off the queue: that something has is all that counts."""
    try:
        while os.read(fd, 65536):
            pass
    except BlockingIOError:
        pass
