"""How a run begins and ends, and what holds after every step; for the rules to build on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, multiple

from . import strategies as draw
from .comparison import ComparingMachine, names
from .strategies import ALICE, Fill
from .tree import joined


class PlantedMachine(ComparingMachine):
    @initialize(target=names, drawn=st.lists(draw.new_names, min_size=2, max_size=4))
    def choose_names(self, drawn: list[bytes]) -> Any:
        return multiple(*drawn)

    @initialize(planted=st.sampled_from([False, True, True, True, True]))
    def plant(self, planted: bool) -> None:
        """Start, mostly, with something to rename, link and remove, some of it Alice's."""
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
        if self.features.users:
            for path in (one, joined(one, three), joined(one, two)):
                self._same("chown", path, ALICE.uid, ALICE.gid)
            self._same("chmod", one, 0o2775)
            self._same("chmod", two, 0o1777)

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
