"""The rules: each does one thing to the driver and to the reference.

What an operation touched is compared at once, the whole tree now and then and
at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from . import strategies as draw
from .comparison import ComparingMachine, Saved
from .drivers import Driver
from .strategies import Existing, Fill, Spot, Step, Under
from .tree import Kind, joined

MOMENTS_MAX = 5


class FilesystemMachine(ComparingMachine):
    """Compare a driver with the reference. Subclasses say which: see ``machine_for``."""

    names: Bundle[bytes] = Bundle("names")
    handles: Bundle[int] = Bundle("handles")
    moments: Bundle[Saved] = Bundle("moments")

    @initialize(target=names, drawn=st.lists(draw.new_names, min_size=2, max_size=4))
    def choose_names(self, drawn: list[bytes]) -> Any:
        return multiple(*drawn)

    @initialize(planted=st.sampled_from([False, True, True, True, True]))
    def plant(self, planted: bool) -> None:
        """Start, mostly, with something to rename, link and remove."""
        if not planted:
            return
        one, two, three, *_ = draw.FEW_NAMES
        for directory in (one, two, joined(one, one), joined(one, two)):
            self._same("mkdir", directory, 0o755)
        for length, path in enumerate((three, joined(one, three), joined(two, one))):
            self._write_file(path, Fill(length + 2, 1 + 70_000 * length), 0o644)
        self._same("link", three, joined(two, three))
        self._same("symlink", joined(b"..", three), joined(one, b"A"))
        if self.features.xattrs:
            self._same("setxattr", three, b"user.a", b"planted", 0)

    # Names

    @rule(place=draw.unders(names), mode=draw.modes)
    def mkdir(self, place: Spot, mode: int) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._once("mkdir", path, self._mode(mode, directory=True))

    @rule(
        parent=draw.existing(Kind.DIRECTORY),
        parts=st.lists(st.sampled_from(draw.NAMES), max_size=14),
    )
    def mkdir_deep(self, parent: Existing, parts: list[bytes]) -> None:
        path = self._path(parent)
        for part in parts:
            path = None if path is None else self._fitting(joined(path, part))
            if path is None or not self._has_room():
                return
            self._same("mkdir", path, 0o755)

    @rule(place=draw.spots(names, Kind.DIRECTORY))
    def rmdir(self, place: Spot) -> None:
        if path := self._path(place):
            self._once("rmdir", path)

    @rule(place=draw.spots(names, Kind.FILE, Kind.FILE, Kind.SYMLINK, Kind.FIFO))
    def unlink(self, place: Spot) -> None:
        if path := self._path(place):
            self._once("unlink", path)

    @rule(place=draw.existing(Kind.DIRECTORY))
    def remove_tree(self, place: Existing) -> None:
        """rm -r."""
        top = self._path(place)
        if not top:
            return
        tree = self.model.tree()
        for path in sorted(tree, reverse=True):
            if path == top or path.startswith(top + b"/"):
                is_dir = tree[path].stat.kind is Kind.DIRECTORY
                self._same("rmdir" if is_dir else "unlink", path)

    @rule(old=draw.spots(names), new=st.one_of(draw.unders(names), draw.spots(names)),
          flags=draw.rename_flags)  # fmt: skip
    def rename(self, old: Spot, new: Spot, flags: int) -> None:
        self._rename(self._path(old), self._path(new), flags)

    @rule(kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY]), one=draw.indexes,
          two=draw.indexes, flags=draw.rename_flags)  # fmt: skip
    def rename_over(self, kind: Kind, one: int, two: int, flags: int) -> None:
        """Replace or exchange like with like: a directory may not be empty, or may be inside."""
        # The first ones are often refused (an ancestor, the same file): five
        # tries meet full directories and hard links far more often than one.
        old = self._path(Existing(one, kind))
        for index in range(two, two + 5):
            if self._rename(old, self._path(Existing(index, kind)), flags):
                return

    @rule(directory=draw.existing(Kind.DIRECTORY), name=draw.names(names))
    def rename_into_own_subtree(self, directory: Existing, name: bytes) -> None:
        if path := self._path(directory):
            self._rename(path, self._fitting(joined(path, name)), 0)

    @rule(existing=draw.spots(names, Kind.FILE, None), place=draw.unders(names))
    def link(self, existing: Spot, place: Spot) -> None:
        old, new = self._path(existing), self._path(place)
        if old and new and self._has_room():
            self._once("link", old, new)
            self.touched.append(old)

    @rule(leads_to=draw.targets(names), place=draw.unders(names))
    def symlink(self, leads_to: bytes, place: Spot) -> None:
        path = self._path(place)
        if path is not None and self._has_room() and self._once("symlink", leads_to, path):
            self.touched = [path]

    @rule(place=draw.unders(names), mode=draw.modes)
    def mkfifo(self, place: Spot, mode: int) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._same("mkfifo", path, self._mode(mode))

    @rule(place=draw.spots(names, Kind.SYMLINK))
    def readlink(self, place: Spot) -> None:
        self._look("readlink", self._path(place))

    @rule(place=draw.spots(names, Kind.DIRECTORY))
    def readdir(self, place: Spot) -> None:
        self._look("readdir", self._path(place))

    # Attributes

    @rule(place=draw.spots(names))
    def stat(self, place: Spot) -> None:
        self._look("stat", self._path(place))

    @rule(place=draw.spots(names, Kind.FILE, Kind.DIRECTORY), mode=draw.modes)
    def chmod(self, place: Spot, mode: int) -> None:
        path = self._path(place)
        if path is not None:
            self._once("chmod", path, self._mode(mode, directory=True))

    @precondition(lambda self: self.features.privileged)
    @rule(place=draw.spots(names, Kind.FILE, Kind.DIRECTORY), uid=draw.ids, gid=draw.ids)
    def chown(self, place: Spot, uid: int, gid: int) -> None:
        path = self._path(place)
        if path is not None:
            self._once("chown", path, uid, gid)

    @rule(place=draw.spots(names), atime_ns=draw.times_ns, mtime_ns=draw.times_ns)
    def utimens(self, place: Spot, atime_ns: int, mtime_ns: int) -> None:
        path = self._path(place)
        if path is not None:
            self._once("utimens", path, atime_ns, mtime_ns)

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
            self._once("chmod", path, self._mode(0o640, directory=True))
        elif then == "setxattr" and self._has_xattr_room(path, b"user.a", Fill(1, 3)):
            self._once("setxattr", path, b"user.a", b"new", 0)
        elif then in ("open", "write nothing"):
            done = self._open(path, os.O_RDWR, 0)
            if done.code is None:
                self._write(done.value, 0, Fill(0, 0 if then == "write nothing" else 1))
                self._same("utimens", path, 0, mtime_ns)
                self._close(done.value)
        self.touched += [path]

    # Extended attributes

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names,
          value=draw.xattr_values, flags=draw.xattr_flags)  # fmt: skip
    def setxattr(self, place: Spot, name: bytes, value: Fill, flags: int) -> None:
        path = self._path(place)
        if path is not None and self._has_xattr_room(path, name, value):
            self._once("setxattr", path, name, value.data(), flags)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names)
    def removexattr(self, place: Spot, name: bytes) -> None:
        path = self._path(place)
        if path is not None:
            self._once("removexattr", path, name)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.xattr_spots(names), name=draw.xattr_names)
    def getxattr(self, place: Spot, name: bytes) -> None:
        path = self._path(place)
        self._look("getxattr", path, name)
        self._look("listxattr", path)

    # Files

    @rule(target=handles, place=draw.unders(names), flags=draw.create_flags, mode=draw.modes)
    def create(self, place: Spot, flags: int, mode: int) -> Any:
        path = self._path(place)
        return self._opened(path if self._has_room() else None, flags, mode)

    @rule(target=handles, place=draw.spots(names, Kind.FILE), flags=draw.open_flags)
    def open(self, place: Spot, flags: int) -> Any:
        return self._opened(self._path(place), flags, 0)

    @rule(target=handles, place=draw.existing(Kind.FILE), flags=draw.open_flags)
    def open_then_unlink(self, place: Existing, flags: int) -> Any:
        path = self._path(place)
        if path is None:
            return multiple()
        done = self._open(path, flags, 0)
        self._same("unlink", path)
        if done.code is not None:
            return multiple()
        self._on_handle("pread", done.value, 8 << 20, 0)
        self._on_handle("fstat", done.value)
        return done.value

    @rule(fh=consumes(handles))
    def close(self, fh: int) -> None:
        self._close(fh)

    @rule(fh=handles, offset=draw.sizes, fill=draw.fills)
    def write(self, fh: int, offset: int, fill: Fill) -> None:
        self._write(fh, offset, fill)

    @rule(fh=handles, beyond=draw.sizes, fill=draw.fills)
    def write_beyond_the_end(self, fh: int, beyond: int, fill: Fill) -> None:
        if fh in self.fhs:
            self._write(fh, (self.model.fstat(fh).size or 0) + beyond, fill)

    @rule(fh=handles, offset=draw.sizes, length=draw.lengths)
    def read(self, fh: int, offset: int, length: int) -> None:
        self._on_handle("pread", fh, length, offset)

    @rule(fh=handles, size=draw.sizes)
    def ftruncate(self, fh: int, size: int) -> None:
        self._write_like("ftruncate", fh, size)

    @rule(fh=handles, datasync=st.booleans())
    def fsync(self, fh: int, datasync: bool) -> None:
        self._on_handle("fsync", fh, datasync=datasync)

    @rule(fh=handles)
    def fstat(self, fh: int) -> None:
        self._on_handle("fstat", fh)

    @rule(place=draw.spots(names, Kind.FILE), size=st.one_of(draw.sizes, draw.sizes, st.just(-1)))
    def truncate(self, place: Spot, size: int) -> None:
        path = self._path(place)
        if path is not None:
            self._once("truncate", path, size)

    @rule(place=draw.unders(names), fill=draw.fills, mode=draw.modes)
    def write_file(self, place: Spot, fill: Fill, mode: int) -> None:
        """What most programs do: open, write, close."""
        path = self._path(place)
        if path is not None and self._has_room():
            self._write_file(path, fill, mode)

    @rule(place=draw.unders(names), temporary=draw.names(names), fill=draw.fills)
    def save_as_editors_do(self, place: Under, temporary: bytes, fill: Fill) -> None:
        """Write a new file, fsync, rename it over the old one."""
        path = self._path(place)
        beside = self._path(Under(place.parent, temporary))
        if not path or not beside or not self._has_room():
            return
        done = self._open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if done.code is None:
            self._write(done.value, 0, fill)
            self._on_handle("fsync", done.value, datasync=False)
            self._close(done.value)
            self._rename(beside, path, 0)

    @rule(place=draw.existing(Kind.FILE), steps=draw.bursts)
    def burst(self, place: Existing, steps: list[Step]) -> None:
        """Writes, reads and truncates of one file, as fsx mixes them."""
        path = self._path(place)
        if path is None:
            return
        done = self._open(path, os.O_RDWR, 0)
        for step in steps:
            if done.code is not None:
                return
            if step.op == "reopen":
                self._close(done.value)
                done = self._open(path, os.O_RDWR, 0)
            else:
                self._burst_step(done.value, step)
        if done.code is None:
            self._on_handle("pread", done.value, 8 << 20, 0)
            self._close(done.value)

    # Whole trees, and time

    @rule()
    def compare_tree(self) -> None:
        self._compare_tree("now")

    @precondition(lambda self: self.features.supports_history and len(self.saved) < MOMENTS_MAX)
    @rule(target=moments)
    def save_moment(self) -> Any:
        return self._save()

    @precondition(lambda self: self.features.supports_history)
    @rule(saved=moments)
    def look_back(self, saved: Saved) -> None:
        self._compare_moment(saved)

    @precondition(lambda self: self.features.supports_undo)
    @rule(saved=moments, redo=st.booleans())
    def undo_all_since(self, saved: Saved, redo: bool) -> None:
        self._undo_since(saved, redo)

    @precondition(lambda self: self.features.supports_undo and len(self.saved) < MOMENTS_MAX)
    @rule(place=draw.existing(Kind.FILE), fill=draw.fills, redo=st.booleans())
    def change_much_and_undo_it(self, place: Existing, fill: Fill, redo: bool) -> None:
        """What an agent does to a file and its directory, all of it taken back at once."""
        path = self._path(place)
        if not path:
            return
        self._close_all()
        saved = self._save()
        self._same("chmod", path, self._mode(0o604))
        self._same("utimens", path, 0, 1_234_567_890_123_456_789)
        self._write_file(path, fill, 0o644)
        if self.features.xattrs and self._has_xattr_room(path, b"user.b", Fill(1, 3)):
            self._same("setxattr", path, b"user.b", b"yes", 0)
        self._rename(path, joined(path.rpartition(b"/")[0], b"moved"), 0)
        self._undo_since(saved, redo)

    @precondition(lambda self: self.features.supports_undo_last and self.before_last is not None)
    @rule(redo=st.booleans())
    def undo_last(self, redo: bool) -> None:
        before = self.before_last
        assert before is not None
        self._close_all()
        if self.model.tree() != before.tree():
            self.driver.undo_last(1)
            self._undone(before, redo)

    @precondition(lambda self: self.features.supports_remount)
    @rule()
    def remount(self) -> None:
        self._close_all()
        self.driver.remount()
        self._compare_tree("after a remount")

    @invariant()
    def what_was_touched_is_the_same(self) -> None:
        touched, self.touched = {b"", *self.touched}, []
        for path in sorted(touched):
            self._look("stat", path)

    def teardown(self) -> None:
        problems: list[str] = []
        try:
            if not self.differed:
                self._compare_end()
        finally:
            problems = self.driver.finish()
            self._drop_bytes()
        assert problems == [], f"the check of the store found: {problems}"

    def _compare_end(self) -> None:
        self._compare_tree("at the end")
        self._close_all()
        self._compare_tree("at the end, all closed")
        for saved in self.saved:
            self._compare_moment(saved)


def machine_for(new_driver: Callable[[], Driver]) -> type[FilesystemMachine]:
    """Return the machine for a driver; ``new_driver`` is called once per example."""
    return type("FilesystemMachine", (FilesystemMachine,), {"new_driver": staticmethod(new_driver)})
