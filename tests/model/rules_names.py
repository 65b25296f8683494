"""Rules about names: making, linking, renaming and removing them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from . import strategies as draw
from .comparison import names
from .permissions import Caller
from .planted import PlantedMachine
from .strategies import Existing, Spot
from .tree import SPECIAL, Kind, joined


class NameRules(PlantedMachine):
    @rule(place=draw.unders(names), mode=draw.modes, who=draw.callers)
    def mkdir(self, place: Spot, mode: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._as(who)
            self._once("mkdir", path, self._mode(mode))

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

    @rule(place=draw.unders(names), kind=draw.special, mode=draw.modes,
          rdev=draw.rdevs, who=draw.callers)  # fmt: skip
    def mknod(self, place: Spot, kind: Kind, mode: int, rdev: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._as(who)
            self._once("mknod", path, kind, self._mode(mode), rdev)

    @rule(leads_to=draw.targets(names), place=draw.unders(names), who=draw.callers)
    def symlink(self, leads_to: bytes, place: Spot, who: Caller) -> None:
        path = self._path(place)
        if path is not None and self._has_room():
            self._as(who)
            self._once("symlink", leads_to, path)
            self.touched = [path]

    @rule(existing=draw.spots(names, Kind.FILE, None), place=draw.unders(names), who=draw.callers)
    def link(self, existing: Spot, place: Spot, who: Caller) -> None:
        old, new = self._path(existing), self._path(place)
        if old and new and self._has_room():
            self._as(who)
            self._once("link", old, new)
            self.touched.append(old)

    @rule(place=draw.spots(names, Kind.DIRECTORY), who=draw.callers)
    def rmdir(self, place: Spot, who: Caller) -> None:
        if path := self._path(place):
            self._as(who)
            self._once("rmdir", path)

    @rule(place=draw.spots(names, Kind.FILE, Kind.FILE, Kind.SYMLINK, *SPECIAL), who=draw.callers)
    def unlink(self, place: Spot, who: Caller) -> None:
        if path := self._path(place):
            self._as(who)
            self._once("unlink", path)

    @rule(place=draw.existing(None), who=draw.others, moved=st.booleans())
    def remove_from_a_sticky_directory(self, place: Existing, who: Caller, moved: bool) -> None:
        """Only owners may."""
        path = self._path(place)
        if not path:
            return
        self._same("chmod", path.rpartition(b"/")[0], self._mode(0o1777))
        self._as(who)
        if moved:
            self._rename(path, joined(path.rpartition(b"/")[0], b"moved"), 0)
        else:
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
          flags=draw.rename_flags, who=draw.callers)  # fmt: skip
    def rename(self, old: Spot, new: Spot, flags: int, who: Caller) -> None:
        one, two = self._path(old), self._path(new)
        self._as(who)
        self._rename(one, two, flags)

    @rule(kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, None]), one=draw.indexes,
          two=draw.indexes, flags=draw.rename_flags)  # fmt: skip
    def rename_over(self, kind: Kind | None, one: int, two: int, flags: int) -> None:
        """Replace or exchange what exists: a directory may not be empty, or may be inside."""
        # The first ones are often refused (an ancestor, the same file): five
        # tries meet full directories and hard links far more often than one.
        old = self._path(Existing(one, kind))
        for index in range(two, two + 5):
            if self._rename(old, self._path(Existing(index, kind)), flags):
                return

    @rule(place=draw.existing(Kind.FILE), flags=draw.rename_flags)
    def rename_to_another_name_of_it(self, place: Existing, flags: int) -> None:
        """A hard link of it, if it has one: nothing is to happen. Else itself."""
        path = self._path(place)
        if path:
            links = self.model.tree()[path].links
            self._rename(path, links[-1] if links else path, flags)

    @rule(place=draw.existing(), up=st.integers(1, 3), flags=draw.rename_flags, way=st.booleans())
    def rename_to_a_directory_above(self, place: Existing, up: int, flags: int, way: bool) -> None:
        """Or the other way round: a tree into itself."""
        path = above = self._path(place)
        for _ in range(up):
            above = above.rpartition(b"/")[0] if above else above
        self._rename(*((path, above) if way else (above, path)), flags)

    @rule(directory=draw.existing(Kind.DIRECTORY), name=draw.names(names))
    def rename_into_own_subtree(self, directory: Existing, name: bytes) -> None:
        if path := self._path(directory):
            self._rename(path, self._fitting(joined(path, name)), 0)

    @rule(place=draw.spots(names, Kind.SYMLINK), who=draw.callers)
    def readlink(self, place: Spot, who: Caller) -> None:
        self._as(who)
        self._look("readlink", self._path(place))

    @rule(place=draw.spots(names, Kind.DIRECTORY), who=draw.callers)
    def readdir(self, place: Spot, who: Caller) -> None:
        self._as(who)
        self._look("readdir", self._path(place))

    @precondition(lambda self: self.features.supports_history)
    @rule(place=draw.existing(Kind.FILE))
    def versions(self, place: Existing) -> None:
        if path := self._path(place):
            self._compare_versions(path)
