"""The door to the users and groups of this machine."""

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from parsupd.core.attributes import Attributes
from parsupd.core.readers import did_you_mean


class Identity(NamedTuple):
    """Who a unit's processes are."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]
    """HOME and the like, as a login sets them; empty when only groups are changed."""

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}, groups {sorted(self.groups)}"


class AccountError(LookupError):
    """There is no such user or group, or parsupd may not become it; `key` and `below` say where."""

    def __init__(self, key: str, message: str, below: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.below = below


def problems(attributes: Attributes) -> Iterable[AccountError]:
    """What is wrong with the user and groups of a unit on this machine, by this user."""
    try:
        identity(attributes)
    except AccountError as error:
        return (error,)
    return ()


def identity(attributes: Attributes) -> Identity | None:
    """Who the processes of a unit are to be; None when that is who parsupd is. Raises AccountError."""
    if not attributes.changes_user:
        return None
    user = _user(attributes.user) if attributes.user else None
    uid = os.geteuid() if user is None else user.uid
    if attributes.group:
        gid = _group(attributes.group, "group")
    elif user is None:
        gid = os.getegid()
    elif user.entry is not None:
        gid = user.entry.pw_gid
    else:
        raise AccountError("user", f"user {uid} is not in the list of users: say its group, too")
    extra = {
        _group(name, "supplementary_groups", f"[{index}]") for index, name in enumerate(attributes.supplementary_groups)
    }
    if os.geteuid() != 0:
        _check_own(uid, gid, extra, attributes)
        return None
    if user is None:
        return Identity(uid, gid, tuple({*os.getgroups(), *extra}), {})
    if user.entry is None:
        return Identity(uid, gid, tuple(extra), {"USER": str(uid), "LOGNAME": str(uid), "HOME": "/"})
    entry = user.entry
    groups = {*os.getgrouplist(entry.pw_name, gid), *extra}
    named = {
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "HOME": entry.pw_dir,
        "SHELL": entry.pw_shell or "/bin/sh",
    }
    return Identity(uid, gid, tuple(groups), named)


def at_home(folder: str, identity: Identity | None) -> str:
    """`folder`, or for "~" the home of who the processes are to be."""
    if folder != "~":
        return folder
    return str(Path("~").expanduser()) if identity is None else identity.environment.get("HOME", "/")


class _User(NamedTuple):
    uid: int
    entry: pwd.struct_passwd | None


def _user(name: str) -> _User:
    try:
        if name.isdigit():
            return _User(int(name), _quietly(pwd.getpwuid, int(name)))
        entry = pwd.getpwnam(name)
    except KeyError:
        names = (each.pw_name for each in pwd.getpwall())
        raise AccountError("user", f"there is no user {name!r}{did_you_mean(name, names)}") from None
    return _User(entry.pw_uid, entry)


def _quietly(look_up: Callable[[int], pwd.struct_passwd], number: int) -> pwd.struct_passwd | None:
    try:
        return look_up(number)
    except KeyError:  # a number needs no name
        return None


def _group(name: str, key: str, below: str = "") -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        names = (each.gr_name for each in grp.getgrall())
        raise AccountError(key, f"there is no group {name!r}{did_you_mean(name, names)}", below) from None


def _check_own(uid: int, gid: int, extra: set[int], attributes: Attributes) -> None:
    """Without root, a process can only go on being who it is."""
    own, advice = os.geteuid(), "run parsupd as root, or leave the key out"
    if uid != own:
        raise AccountError("user", f"only root may start processes of another user, and this is user {own}: {advice}")
    if gid != os.getegid():
        key = "group" if attributes.group else "user"
        raise AccountError(key, f"only root may start processes of another group, and this is {os.getegid()}: {advice}")
    if extra - {*os.getgroups(), gid}:
        raise AccountError("supplementary_groups", f"only root may add groups to those that it is in: {advice}")
