"""Rules about the whole: the past, undo and redo, a stop and a start."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from . import strategies as draw
from .comparison import Saved, moments
from .planted import PlantedMachine
from .strategies import Existing, Fill
from .tree import Kind, below, joined

MOMENTS_MAX = 5
_SELDOM = st.sampled_from([False] * 5 + [True])
"""A daemon takes a second to stop and start."""


class TimeRules(PlantedMachine):
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

    @precondition(lambda self: self.operations)
    @rule(index=draw.indexes)
    def look_back_at_an_operation(self, index: int) -> None:
        moment, model = self.operations[index % len(self.operations)]
        self._compare_past(moment, model.tree())

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
        saved = self._save()
        self._same("chmod", path, self._mode(0o604))
        self._same("utimens", path, 0, 1_234_567_890_123_456_789)
        self._write_file(path, fill, 0o644)
        if self.features.xattrs and self._has_room_for(path, b"user.b", Fill(1, 3)):
            self._same("setxattr", path, b"user.b", b"yes", 0)
        self._rename(path, joined(path.rpartition(b"/")[0], b"moved"), 0)
        self._undo_since(saved, redo)

    @precondition(lambda self: self.features.supports_undo_last and self.before_last is not None)
    @rule(redo=st.booleans())
    def undo_last(self, redo: bool) -> None:
        before = self.before_last
        assert before is not None
        self._close_nameless()
        if self.model.tree() != before.tree():
            self.driver.undo_last(1)
            self._undone(before, redo)

    @precondition(lambda self: self.features.supports_restore and self.operations)
    @rule(index=draw.indexes, place=draw.existing(Kind.DIRECTORY))
    def restore_and_undo_it(self, index: int, place: Existing) -> None:
        """A directory that still is the same one becomes what it was; undo takes that back."""
        moment, model = self.operations[index % len(self.operations)]
        path = self._path(place)
        then, now = model.tree(), self.model.tree()
        if path not in then or then[path].stat.ino != now[path].stat.ino:
            path = b""
        self._close_nameless()
        self._compare_tree("before restoring")
        head = self.driver.operation()
        self.driver.restore(path, moment)
        self._require_same_tree(
            f"{path!r} restored as it was at {moment}",
            below(path, then),
            below(path, self.driver.tree()),
        )
        if self.driver.operation() != head:
            self.driver.undo_last(1)
        self._compare_tree("after undoing that")
        self.before_last = None

    @precondition(lambda self: self.features.supports_kill)
    @rule(now=_SELDOM)
    def kill(self, now: bool) -> None:
        """What close(2) returned for survives, and nothing else is lost."""
        if not now:
            return
        self._close_all()
        self.driver.kill()
        self._compare_tree("after kill -9")

    @precondition(lambda self: self.features.supports_remount)
    @rule(now=_SELDOM)
    def remount(self, now: bool) -> None:
        if not now:
            return
        self._close_all()
        self.driver.remount()
        self._compare_tree("after a remount")
