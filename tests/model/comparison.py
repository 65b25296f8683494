"""What the rules are made of: do a thing to both sides, and compare.

The reference goes first: what it does not model is skipped before the driver
sees it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple

from .drivers import Driver
from .permissions import Caller
from .reference import ReferenceFs
from .reference_tree import Unmodelled
from .strategies import Fill, Spot, Step, Under
from .tree import (
    Entry,
    Kind,
    Stat,
    Tree,
    fresh_since,
    joined,
    shortened,
    stat_difference,
    tree_difference,
)

PATH_LIMIT = 3_500
"""PATH_MAX is 4,096; the rest is for the driver's own root and for history's names."""

ENTRIES_MAX = 150

DONE_MAX = 60
"""Operations to tell of when something differs."""
OPERATIONS_MAX = 20
"""Operations to look back at."""
EVERY_NTH = 3
"""So many changes make one of them."""


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


log = logging.getLogger(__name__)

names: Bundle[bytes] = Bundle("names")
handles: Bundle[int] = Bundle("handles")
moments: Bundle[Saved] = Bundle("moments")


class ComparingMachine(RuleBasedStateMachine):
    """A driver, the reference, and no rules yet."""

    new_driver: ClassVar[Callable[[], Driver]]

    def __init__(self) -> None:
        super().__init__()
        self.driver = type(self).new_driver()
        features = self.features = self.driver.features
        self.model = ReferenceFs(
            caller=features.caller,
            umask=features.umask,
            follow_symlinks=features.follows_symlinks,
            knows_who_writes=features.knows_who_writes,
        )
        self.started_ns = self.driver.now_ns()
        self.fhs: dict[int, int] = {}
        self.written: set[int] = set()
        self.saved: list[Saved] = []
        self.reachable: list[Saved] = []
        self.before_last: ReferenceFs | None = None
        self.changes = 0
        self.operations: deque[tuple[str, ReferenceFs]] = deque(maxlen=OPERATIONS_MAX)
        self.touched: list[bytes] = []
        self.differed = False
        self.done: deque[str] = deque(maxlen=DONE_MAX)

    # Inside: doing a thing to both

    def _as(self, who: Caller) -> None:
        """Until the rule ends, somebody else does what is done."""
        caller = who if self.features.users else self.features.caller
        self.model.act_as(caller)
        self.driver.act_as(caller)

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
        if done.code is None:
            self._note_operation()
        return done.code is None

    def _note_operation(self) -> None:
        """Every few changes, remember what the log has last and how things were then."""
        self.changes += 1
        if self.features.history_of_open_files and self.changes % EVERY_NTH == 0:
            caller = self.model.caller
            self._as(self.features.caller)
            self.operations.append((self.driver.operation(), self.model.saved()))
            self._as(caller)

    def _look(self, op: str, path: bytes | None, *args: Any) -> None:
        if path is not None:
            self._compared(op, (path, *args), (path, *args), {})

    def _on_handle(self, op: str, fh: int, *args: Any, **named: Any) -> Done:
        if fh not in self.fhs:
            return SKIPPED
        return self._compared(op, (fh, *args), (self.fhs[fh], *args), named)

    def _change_by_handle(self, op: str, fh: int, *args: Any) -> Done:
        self.before_last = None
        return self._on_handle(op, fh, *args)

    def _write_like(self, op: str, fh: int, *args: Any) -> None:
        if self._change_by_handle(op, fh, *args).code is None:
            self.written.add(fh)

    def _copy(self, source: int, sink: int, length: int, start: int, to: int) -> None:
        if source in self.fhs and sink in self.fhs:
            self.before_last = None
            where = (length, start, to)
            done = self._compared(
                "copy_range", (source, sink, *where), (self.fhs[source], self.fhs[sink], *where), {}
            )
            if done.code is None:
                self.written.add(sink)

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
        self.done.append(f"{what} as {self.model.caller.uid}: {found}")
        if isinstance(expected.value, Stat) and isinstance(found.value, Stat):
            self._require_same_stat(what, expected.value, found.value)
        elif op in ("open", "open_again") and expected.code is None and found.code is None:
            self.fhs[expected.value] = found.value
        else:
            self._require(
                expected == found,
                f"{what}: the reference says {expected}, the driver {found}"
                f"{_first_difference(expected.value, found.value)}",
            )
        return expected

    def _require_same_stat(self, what: str, expected: Stat, found: Stat) -> None:
        difference = stat_difference(expected, found)
        self._require(not difference, f"{what}: {difference}")
        self._require(
            fresh_since(expected, found, self.started_ns, self.driver.now_ns()),
            f"{what}: the mtime should lie within the run, is {found.mtime_ns}",
        )

    def _rename(self, old: bytes | None, new: bytes | None, flags: int) -> bool:
        if not old or not new or not self._fits_after_rename(old, new, flags):
            return False
        return self._once("rename", old, new, flags)

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

    def _opened_again(self, fh: int, flags: int) -> Any:
        self.before_last = None
        done = self._on_handle("open_again", fh, flags)
        if done.code is not None:
            return multiple()
        if flags & os.O_TRUNC:
            self.written.add(done.value)
        return done.value

    def _write_file(self, path: bytes, fill: Fill, mode: int) -> None:
        done = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        if done.code is None:
            self._write(done.value, 0, fill)
            self._close(done.value)

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

    def _close_nameless(self) -> None:
        """What is written to a file that has no name is in nobody's past, undone or not."""
        for fh in [fh for fh in self.fhs if self.model.find_path_of(fh) is None]:
            self._close(fh)

    def _writable(self) -> list[int]:
        # A read-only handle that truncated when it was opened counts too.
        return [fh for fh in self.fhs if self.model.opened(fh).writable or fh in self.written]

    # Inside: comparing the whole

    def _compare_tree(self, when: str) -> Tree:
        problems = self.model.check()
        self._require(not problems, f"the reference contradicts itself: {problems}")
        live = self.driver.tree()
        self._require_same_tree(f"the tree {when}", self.model.tree(), live)
        return live

    def _compare_moment(self, saved: Saved) -> None:
        past = self._compare_past(saved.moment, saved.tree)
        if self.features.exact_history_mtimes:
            moved = {
                path: (entry.stat.mtime_ns, past[path].stat.mtime_ns)
                for path, entry in saved.live.items()
                if _has_own_mtime(entry) and entry.stat.mtime_ns != past[path].stat.mtime_ns
            }
            self._require(not moved, f"at {saved.moment}, mtimes (then, now): {moved}")

    def _compare_past(self, moment: str, expected: Tree) -> Tree:
        past = self.driver.tree_at(moment)
        self._require_same_tree(f"the tree at {moment}", expected, past)
        return past

    def _compare_versions(self, path: bytes) -> None:
        """Every content that was seen under a name of a directory is one of its versions."""
        self.driver.operation()  # close(2) does not wait for the record of what was written
        parent = path.rpartition(b"/")[0]
        directory = self.model.stat(parent).ino
        contents = {}
        for moment, model in [*self.operations, ("now", self.model)]:
            tree = model.tree()
            entry, above = tree.get(path), tree.get(parent)
            if entry and above and entry.stat.kind is Kind.FILE and above.stat.ino == directory:
                contents[moment] = entry.content
        found = self.driver.versions(path)
        missing = [moment for moment, content in contents.items() if content not in found]
        self._require(not missing, f"no version of {path!r} is its content at {missing}")

    def _require_same_tree(self, what: str, expected: Tree, found: Tree) -> None:
        lines = tree_difference(expected, found, self.started_ns, self.driver.now_ns())
        self._require(not lines, f"{what}:\n" + "\n".join(lines))

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            # After the first difference the end differs too: teardown must not
            # report that in place of this.
            self.differed = True
            # Should it not happen again, this is all there is.
            log.error("%s, after\n%s", what, "\n".join(self.done))
            raise AssertionError(what)

    def _save(self) -> Saved:
        if not self.features.history_of_open_files:
            self._close_all(writable_only=True)
        live = self._compare_tree("before the moment")
        saved = Saved(self.driver.moment(), self.model.saved(), self.model.tree(), live)
        self.saved.append(saved)
        self.reachable.append(saved)
        self.before_last = None
        return saved

    def _undo_since(self, saved: Saved, redo: bool) -> None:
        self._close_nameless()
        if not any(saved is other for other in self.reachable):
            return
        if self.model.tree() == saved.tree:
            return  # perhaps there is nothing to undo, and then nothing to redo
        self._compare_tree("before the undo")
        self.driver.undo_since(saved.moment)
        self._undone(saved.model, redo)
        if not redo and not self.features.undo_since_takes_back_undos:
            # What came between this moment and a later one is undone now, and
            # stays so: the later one can be looked at but not returned to.
            at = next(index for index, other in enumerate(self.reachable) if other is saved)
            del self.reachable[at + 1 :]

    def _undone(self, before: ReferenceFs, redo: bool) -> None:
        self._require_same_tree("the tree after undo", before.tree(), self.driver.tree())
        if redo:
            self.driver.redo()
            self._compare_tree("after redo")
        else:
            # Later rules change this copy: the saved one must stay as it was.
            self.model = before.with_handles_of(self.model)
        self.before_last = None

    def _drop_bytes(self) -> None:
        # Machines are cyclic garbage, and the collector counts objects, not
        # bytes: without this, a thousand examples hold a gigabyte.
        self.model = ReferenceFs()
        self.saved.clear()
        self.operations.clear()
        self.reachable.clear()

    # Inside: what is drawn becomes a path

    def _path(self, spot: Spot) -> bytes | None:
        """Return where a spot is in the present tree; None where there is no such thing."""
        if isinstance(spot, Under):
            parent = self._path(spot.parent)
            return None if parent is None else self._fitting(joined(parent, spot.name))
        paths = self.model.paths_with_xattrs() if spot.with_xattrs else []
        paths = paths or self.model.paths(*([spot.kind] if spot.kind else []))
        return paths[spot.index % len(paths)] if paths else None

    def _fitting(self, path: bytes) -> bytes | None:
        return path if len(path) <= PATH_LIMIT else None

    def _has_room_for(self, path: bytes, name: bytes, value: Fill) -> bool:
        held = self.model.xattrs_of(path)
        used = sum(len(other) + 32 + len(data) for other, data in held.items())
        return used + len(name) + 32 + value.length <= self.features.xattr_bytes

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

    def _mode(self, mode: int) -> int:
        """Return a mode that leaves a caller who is not root able to go on."""
        return mode if self.features.privileged else (mode & 0o1777) | 0o700


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
