"""Rules about modes, owners, times, extended attributes and ACLs."""

from __future__ import annotations

import os

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from . import strategies as draw
from .comparison import handles, names
from .permissions import Caller
from .planted import PlantedMachine
from .strategies import Existing, Fill, Spot
from .tree import Kind, joined

_INODES = (Kind.FILE, Kind.FILE, Kind.DIRECTORY, None)


class AttributeRules(PlantedMachine):
    @rule(place=draw.spots(names), who=draw.callers)
    def stat(self, place: Spot, who: Caller) -> None:
        self._as(who)
        self._look("stat", self._path(place))

    @rule(place=draw.spots(names, *_INODES), mode=draw.modes, who=draw.callers)
    def chmod(self, place: Spot, mode: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("chmod", path, self._mode(mode))

    @rule(fh=handles, mode=draw.modes, who=draw.callers)
    def fchmod(self, fh: int, mode: int, who: Caller) -> None:
        self._as(who)
        self._change_by_handle("fchmod", fh, self._mode(mode))
        self._on_handle("fstat", fh)

    @precondition(lambda self: self.features.privileged)
    @rule(place=draw.spots(names, *_INODES), uid=draw.ids, gid=draw.ids, who=draw.callers)
    def chown(self, place: Spot, uid: int, gid: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("chown", path, uid, gid)

    @precondition(lambda self: self.features.privileged)
    @rule(fh=handles, uid=draw.ids, gid=draw.ids, who=draw.callers)
    def fchown(self, fh: int, uid: int, gid: int, who: Caller) -> None:
        self._as(who)
        self._change_by_handle("fchown", fh, uid, gid)
        self._on_handle("fstat", fh)

    @rule(place=draw.spots(names), atime_ns=draw.times_ns, mtime_ns=draw.times_ns, who=draw.callers)
    def utimens(self, place: Spot, atime_ns: int, mtime_ns: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("utimens", path, atime_ns, mtime_ns)

    @rule(fh=handles, atime_ns=draw.times_ns, mtime_ns=draw.times_ns, who=draw.callers)
    def futimens(self, fh: int, atime_ns: int, mtime_ns: int, who: Caller) -> None:
        self._as(who)
        self._change_by_handle("futimens", fh, atime_ns, mtime_ns)
        self._on_handle("fstat", fh)

    @rule(place=draw.spots(names), who=draw.callers)
    def touch(self, place: Spot, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("touch", path)

    @rule(
        place=draw.existing(Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK),
        mtime_ns=draw.times_ns,
        then=st.sampled_from(["chmod", "link", "rename", "setxattr", "open", "write nothing"]),
        name=draw.names(names),
    )
    def set_times_then(self, place: Existing, mtime_ns: int, then: str, name: bytes) -> None:
        """None of these changes the mtime of the file itself: at most the ctime."""
        path = self._path(place)
        other = self._fitting(joined(path.rpartition(b"/")[0], name)) if path else None
        if not path or not other:
            return
        self._same("utimens", path, 0, mtime_ns)
        if then == "rename":
            self._rename(path, other, 0)
        elif then == "link" and self._has_room():
            self._once("link", path, other)
        elif then == "chmod":
            self._once("chmod", path, self._mode(0o640))
        elif then == "setxattr" and self._has_room_for(path, b"user.a", Fill(1, 3)):
            self._once("setxattr", path, b"user.a", b"new", 0)
        elif then in ("open", "write nothing"):
            done = self._open(path, os.O_RDWR, 0)
            if done.code is None:
                self._write(done.value, 0, Fill(0, 0 if then == "write nothing" else 1))
                self._same("utimens", path, 0, mtime_ns)
                self._close(done.value)
        self.touched += [path]

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names,
          value=draw.xattr_values, flags=draw.xattr_flags, who=draw.callers)  # fmt: skip
    def setxattr(self, place: Spot, name: bytes, value: Fill, flags: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None and self._has_room_for(path, name, value):
            self._as(who)
            self._once("setxattr", path, name, value.data(), flags)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names, who=draw.callers)
    def removexattr(self, place: Spot, name: bytes, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("removexattr", path, name)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names, who=draw.callers)
    def getxattr(self, place: Spot, name: bytes, who: Caller) -> None:
        path = self._path(place)
        self._as(who)
        self._look("getxattr", path, name)
        self._look("listxattr", path)

    @precondition(lambda self: self.features.xattrs)
    @rule(fh=handles, name=draw.xattr_names, length=st.integers(0, 100), who=draw.callers)
    def xattrs_by_handle(self, fh: int, name: bytes, length: int, who: Caller) -> None:
        self._as(who)
        self._change_by_handle("fsetxattr", fh, name, Fill(2, length).data(), 0)
        self._on_handle("flistxattr", fh)
        self._on_handle("fgetxattr", fh, name)
        if length % 3 == 0:
            self._change_by_handle("fremovexattr", fh, name)

    @precondition(lambda self: self.features.acls)
    @rule(place=draw.spots(names, *_INODES), name=draw.acl_names, value=draw.acls,
          who=draw.callers)  # fmt: skip
    def set_acl(self, place: Spot, name: bytes, value: bytes, who: Caller) -> None:
        """setfacl(1)."""
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("setxattr", path, name, value, 0)
            self._look("getxattr", path, name)

    @precondition(lambda self: self.features.acls)
    @rule(place=draw.xattr_spots(names), name=draw.acl_names, who=draw.callers)
    def remove_acl(self, place: Spot, name: bytes, who: Caller) -> None:
        """setfacl -b, setfacl -k."""
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("removexattr", path, name)
            self._look("getxattr", path, name)
