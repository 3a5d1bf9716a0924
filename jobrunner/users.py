"""Users of the system that jobs run as."""

import grp
import os
import pwd
from collections.abc import Mapping
from typing import NamedTuple


class User(NamedTuple):
    """A user, as the system's database has it.

    Attributes:
        gid: of the primary group.
        groups: all groups, the primary one among them.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a login of this user sets."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def find_user(text: str) -> User:
    """Look up ``user``, or ``user:group`` for another primary group.

    Raises:
        ValueError: there is no such user, or no such group.
    """
    name, _, group = text.partition(":")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"this machine has no user {name}") from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise ValueError(f"this machine has no group {group}") from None
    groups = {gid, *os.getgrouplist(name, gid)}
    return User(name, entry.pw_uid, gid, tuple(sorted(groups)), entry.pw_dir)
