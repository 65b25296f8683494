"""The machine: the rules of ``rules_*.py``, and those about time.

What an operation touched is compared at once, the whole tree now and then and
at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from . import strategies as draw
from .comparison import Saved, moments
from .drivers import Driver
from .rules_attributes import AttributeRules
from .rules_files import FileRules
from .rules_names import NameRules
from .strategies import Existing, Fill
from .tree import Kind, joined

MOMENTS_MAX = 5


class FilesystemMachine(NameRules, AttributeRules, FileRules):
    """Compare a driver with the reference. Subclasses say which: see ``machine_for``."""

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
        self._close_all()
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
        self._as(self.features.caller)
        touched, self.touched = {b"", *self.touched}, []
        for path in sorted(touched):
            self._look("stat", path)

    def teardown(self) -> None:
        problems: list[str] = []
        try:
            self._as(self.features.caller)
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
        for moment, model in list(self.operations)[-1::-7]:
            self._compare_past(moment, model.tree())


def machine_for(new_driver: Callable[[], Driver]) -> type[FilesystemMachine]:
    """Return the machine for a driver; ``new_driver`` is called once per example."""
    return type("FilesystemMachine", (FilesystemMachine,), {"new_driver": staticmethod(new_driver)})
