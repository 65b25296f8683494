"""The rules: each does one thing to the driver and to the reference, and compares.

The reference goes first: what it does not model is skipped before the driver
sees it. A tree is compared whole now and then and at the end; what an
operation touched, at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from . import strategies as draw
from .drivers import Driver
from .reference import (
    Entry,
    Kind,
    ReferenceFs,
    Stat,
    Tree,
    Unmodelled,
    fresh_since,
    joined,
    shortened,
    stat_difference,
    tree_difference,
)
from .strategies import Existing, Fill, Spot, Step, Under

PATH_LIMIT = 3_500
"""PATH_MAX is 4,096; the rest is for the driver's own root and for history's names."""

ENTRIES_MAX = 150
MOMENTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Done:
    """How an operation ended: its result, or its errno."""

    value: Any = None
    code: int | None = None

    def __str__(self) -> str:
        if self.code is not None:
            return errno.errorcode.get(self.code, str(self.code))
        if isinstance(self.value, bytes):
            return f"{len(self.value)} bytes {self.value[:24]!r}"
        return repr(self.value)


SKIPPED = Done(code=-1)


@dataclass(frozen=True, slots=True)
class Saved:
    """A moment, the reference as it was then, and what the driver showed then."""

    moment: str
    model: ReferenceFs
    tree: Tree
    live: Tree


class FilesystemMachine(RuleBasedStateMachine):
    """Compare a driver with the reference. Subclasses say which: see ``machine_for``."""

    new_driver: ClassVar[Callable[[], Driver]]

    names: Bundle[bytes] = Bundle("names")
    handles: Bundle[int] = Bundle("handles")
    moments: Bundle[Saved] = Bundle("moments")

    def __init__(self) -> None:
        super().__init__()
        self.driver = type(self).new_driver()
        features = self.features = self.driver.features
        self.model = ReferenceFs(
            uid=features.uid,
            gid=features.gid,
            umask=features.umask,
            follow_symlinks=features.follows_symlinks,
        )
        self.started_ns = self.driver.now_ns()
        self.fhs: dict[int, int] = {}
        self.written: set[int] = set()
        self.saved: list[Saved] = []
        self.before_last: ReferenceFs | None = None
        self.touched: list[bytes] = []

    @initialize(target=names, drawn=st.lists(draw.new_names, min_size=2, max_size=4))
    def choose_names(self, drawn: list[bytes]) -> Any:
        return multiple(*drawn)

    # Names

    @rule(place=draw.unders(names), mode=draw.modes)
    def mkdir(self, place: Spot, mode: int) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._once("mkdir", path, self._mode(mode, directory=True))

    @rule(parent=draw.existing(Kind.DIRECTORY), parts=st.lists(draw.names(names), max_size=14))
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

    @rule(kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY]), one=st.integers(0, 40),
          two=st.integers(0, 40), flags=draw.rename_flags)  # fmt: skip
    def rename_over(self, kind: Kind, one: int, two: int, flags: int) -> None:
        """Replace or exchange like with like: a directory may not be empty, or may be inside."""
        self._rename(self._path(Existing(one, kind)), self._path(Existing(two, kind)), flags)

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

    # Extended attributes

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.spots(names, Kind.FILE, Kind.DIRECTORY), name=draw.xattr_names,
          value=draw.xattr_values, flags=draw.xattr_flags)  # fmt: skip
    def setxattr(self, place: Spot, name: bytes, value: Fill, flags: int) -> None:
        path = self._path(place)
        if path is not None and self._has_xattr_room(path, name, value):
            self._once("setxattr", path, name, value.data(), flags)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.spots(names, Kind.FILE, Kind.DIRECTORY), name=draw.xattr_names)
    def removexattr(self, place: Spot, name: bytes) -> None:
        path = self._path(place)
        if path is not None:
            self._once("removexattr", path, name)

    @precondition(lambda self: self.features.xattrs)
    @rule(place=draw.spots(names, Kind.FILE, Kind.DIRECTORY), name=draw.xattr_names)
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
        result = self._opened(path, flags, 0)
        if path:
            self._same("unlink", path)
        return result

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
        if path is None or not self._has_room():
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        done = self._open(path, flags, mode)
        if done.code is None:
            self._write(done.value, 0, fill)
            self._close(done.value)

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
        if not self.features.history_of_open_files:
            self._close_all(writable_only=True)
        live = self._compare_tree("before the moment")
        saved = Saved(self.driver.moment(), self.model.saved(), self.model.tree(), live)
        self.saved.append(saved)
        self.before_last = None
        return saved

    @precondition(lambda self: self.features.supports_history)
    @rule(saved=moments)
    def look_back(self, saved: Saved) -> None:
        self._compare_moment(saved)

    @precondition(lambda self: self.features.supports_undo)
    @rule(saved=moments, redo=st.booleans())
    def undo_all_since(self, saved: Saved, redo: bool) -> None:
        self._close_all()
        if self.model.tree() == saved.tree:
            return  # perhaps there is nothing to undo, and then nothing to redo
        self._compare_tree("before the undo")
        self.driver.undo_since(saved.moment)
        self._undone(saved.model, redo)

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
            if self.features.supports_history:
                self._close_all(writable_only=not self.features.history_of_open_files)
            self._compare_tree("at the end")
            self._close_all()
            self._compare_tree("at the end, all closed")
            for saved in self.saved:
                self._compare_moment(saved)
        finally:
            problems = self.driver.finish()
        assert problems == [], f"the check of the store found: {problems}"

    # Inside: doing a thing to both

    def _same(self, op: str, *args: Any, **named: Any) -> Done:
        """Do a change to both; require the same outcome, which is returned."""
        self.before_last = None
        done = self._compared(op, args, args, named)
        self.touched += [arg for arg in args if isinstance(arg, bytes) and len(arg) <= PATH_LIMIT]
        if op in ("setxattr", "removexattr"):
            self.touched = [args[0]]
        return done

    def _once(self, op: str, *args: Any) -> bool:
        """Do what is one record of the log; remember the state before. True if it succeeded."""
        before = None
        if self.features.supports_undo_last and not self._writable():
            before = self.model.saved()
        done = self._same(op, *args)
        self.before_last = before if done.code is None else None
        return done.code is None

    def _look(self, op: str, path: bytes | None, *args: Any) -> None:
        if path is not None:
            self._compared(op, (path, *args), (path, *args), {})

    def _on_handle(self, op: str, fh: int, *args: Any, **named: Any) -> Done:
        if fh not in self.fhs:
            return SKIPPED
        return self._compared(op, (fh, *args), (self.fhs[fh], *args), named)

    def _write_like(self, op: str, fh: int, *args: Any) -> None:
        self.before_last = None
        done = self._on_handle(op, fh, *args)
        if done.code is None:
            self.written.add(fh)

    def _compared(
        self,
        op: str,
        model_args: tuple[Any, ...],
        driver_args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Done:
        try:
            expected = _outcome(getattr(self.model, op), model_args, named)
        except Unmodelled:
            return SKIPPED
        found = _outcome(getattr(self.driver, op), driver_args, named)
        what = f"{op}({', '.join(map(_shown, model_args))})"
        if isinstance(expected.value, Stat) and isinstance(found.value, Stat):
            self._require_same_stat(what, expected.value, found.value)
        elif op == "open" and expected.code is None and found.code is None:
            self.fhs[expected.value] = found.value
        else:
            assert expected == found, (
                f"{what}: the reference says {expected}, the driver {found}"
                f"{_first_difference(expected.value, found.value)}"
            )
        return expected

    def _require_same_stat(self, what: str, expected: Stat, found: Stat) -> None:
        assert (difference := stat_difference(expected, found)) == [], f"{what}: {difference}"
        assert fresh_since(expected, found, self.started_ns, self.driver.now_ns()), (
            f"{what}: the mtime should lie within the run, is {found.mtime_ns}"
        )

    def _rename(self, old: bytes | None, new: bytes | None, flags: int) -> None:
        if not old or not new or not self._fits_after_rename(old, new, flags):
            return
        self._once("rename", old, new, flags)

    def _open(self, path: bytes, flags: int, mode: int) -> Done:
        done = self._same("open", path, flags, self._mode(mode))
        if done.code is None and flags & os.O_TRUNC:
            self.written.add(done.value)
        return done

    def _opened(self, path: bytes | None, flags: int, mode: int) -> Any:
        if path is None:
            return multiple()
        done = self._open(path, flags, mode)
        return multiple() if done.code is not None else done.value

    def _write(self, fh: int, offset: int, fill: Fill) -> None:
        self._write_like("pwrite", fh, fill.data(), offset)

    def _burst_step(self, fh: int, step: Step) -> None:
        if step.op == "write":
            self._write(fh, step.offset, step.fill)
        elif step.op == "read":
            self._on_handle("pread", fh, step.fill.length, step.offset)
        elif step.op == "truncate":
            self._write_like("ftruncate", fh, step.offset)
        else:
            self._on_handle("fsync", fh, datasync=bool(step.offset % 2))
        self._on_handle("fstat", fh)

    def _close(self, fh: int) -> None:
        if fh in self.fhs:
            self.before_last = None if fh in self._writable() else self.before_last
            self._on_handle("close", fh)
            del self.fhs[fh]
            self.written.discard(fh)

    def _close_all(self, *, writable_only: bool = False) -> None:
        for fh in self._writable() if writable_only else list(self.fhs):
            self._close(fh)

    def _writable(self) -> list[int]:
        # A read-only handle that truncated when it was opened counts too.
        return [fh for fh in self.fhs if self.model.opened(fh).writable or fh in self.written]

    # Inside: comparing the whole

    def _compare_tree(self, when: str) -> Tree:
        assert self.model.check() == []
        live = self.driver.tree()
        self._require_same_tree(f"the tree {when}", self.model.tree(), live)
        return live

    def _compare_moment(self, saved: Saved) -> None:
        past = self.driver.tree_at(saved.moment)
        self._require_same_tree(f"the tree at {saved.moment}", saved.tree, past)
        if self.features.exact_history_mtimes:
            moved = {
                path: (entry.stat.mtime_ns, past[path].stat.mtime_ns)
                for path, entry in saved.live.items()
                if _has_own_mtime(entry) and entry.stat.mtime_ns != past[path].stat.mtime_ns
            }
            assert moved == {}, f"at {saved.moment}, mtimes (then, now): {moved}"

    def _require_same_tree(self, what: str, expected: Tree, found: Tree) -> None:
        lines = tree_difference(expected, found, self.started_ns, self.driver.now_ns())
        assert lines == [], f"{what}:\n" + "\n".join(lines)

    def _undone(self, before: ReferenceFs, redo: bool) -> None:
        self._require_same_tree("the tree after undo", before.tree(), self.driver.tree())
        if redo:
            self.driver.redo()
            self._compare_tree("after redo")
        else:
            # Later rules change this copy: the saved one must stay as it was.
            self.model = before.saved()
        self.before_last = None

    # Inside: what is drawn becomes a path

    def _path(self, spot: Spot) -> bytes | None:
        """Return where a spot is in the present tree; None where there is no such thing."""
        if isinstance(spot, Under):
            parent = self._path(spot.parent)
            return None if parent is None else self._fitting(joined(parent, spot.name))
        paths = self.model.paths(*([spot.kind] if spot.kind else []))
        return paths[spot.index % len(paths)] if paths else None

    def _fitting(self, path: bytes) -> bytes | None:
        return path if len(path) <= PATH_LIMIT else None

    def _fits_after_rename(self, old: bytes, new: bytes, flags: int) -> bool:
        swaps = [(old, new), (new, old)] if flags else [(old, new)]
        return all(
            len(path) - len(here) + len(there) <= PATH_LIMIT
            for here, there in swaps
            for path in self.model.paths()
            if path.startswith(here + b"/")
        )

    def _has_room(self) -> bool:
        return len(self.model.paths()) < ENTRIES_MAX

    def _has_xattr_room(self, path: bytes, name: bytes, value: Fill) -> bool:
        held = 0
        with suppress(OSError, Unmodelled):
            names = self.model.listxattr(path)
            held = sum(len(other) + 32 + len(self.model.getxattr(path, other)) for other in names)
        return held + len(name) + 32 + value.length <= self.features.xattr_bytes

    def _mode(self, mode: int, *, directory: bool = False) -> int:
        """Return a mode that leaves the caller able to go on.

        Who is not root keeps their own access. A sticky directory that
        others may write is left out: there, sysctl fs.protected_* decides.
        """
        if directory and mode & 0o1000:
            mode &= ~0o022
        return mode if self.features.privileged else (mode & 0o1777) | 0o700


def machine_for(new_driver: Callable[[], Driver]) -> type[FilesystemMachine]:
    """Return the machine for a driver; ``new_driver`` is called once per example."""
    return type("FilesystemMachine", (FilesystemMachine,), {"new_driver": staticmethod(new_driver)})


def _outcome(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Done:
    try:
        return Done(call(*args, **named))
    except OSError as error:
        return Done(code=error.errno)


def _has_own_mtime(entry: Entry) -> bool:
    """A directory's mtime may be derived from its entries; history need not keep it."""
    return entry.stat.kind is not Kind.DIRECTORY


def _first_difference(expected: Any, found: Any) -> str:
    if not isinstance(expected, bytes) or not isinstance(found, bytes):
        return ""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((index for index, (one, two) in pairs if one != two), None)
    return "" if at is None else f"; first differing byte at {at}"


def _shown(value: Any) -> str:
    return shortened(value) if isinstance(value, bytes) else repr(value)
