"""The machine must find bugs: run on a second reference, sound and then broken on purpose."""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .drivers import Driver, Features
from .machine import ALL, Rules, machine_for
from .reference import ReferenceFs
from .reference_tree import Node
from .rules_attributes import AttributeRules
from .rules_files import FileRules
from .rules_names import NameRules
from .rules_time import TimeRules
from .tree import Tree


class MemoryDriver(ReferenceFs):
    """The reference as a driver, with the whole of its history kept as copies."""

    features: ClassVar[Features] = Features(
        users=True,
        acls=True,
        supports_history=True,
        history_of_open_files=True,
        exact_history_mtimes=False,
        supports_undo=True,
        undo_since_takes_back_undos=True,
        supports_undo_last=True,
        supports_remount=True,
    )

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, ReferenceFs] = {}
        self.undone: list[ReferenceFs] = []
        self.before: list[ReferenceFs] = []
        self.numbers = itertools.count()

    def now_ns(self) -> int:
        return time.time_ns()

    def moment(self) -> str:
        name = f"m{next(self.numbers)}"
        self.states[name] = self.saved()
        return name

    def operation(self) -> str:
        return self.moment()

    def tree_at(self, moment: str) -> Tree:
        return self.states[moment].tree()

    def versions(self, path: bytes) -> list[bytes]:
        trees = [self.tree(), *(state.tree() for state in self.states.values())]
        found = [tree[path].content for tree in trees if path in tree]
        return [content for content in found if content is not None]

    def undo_since(self, moment: str) -> None:
        self.undone.append(self.saved())
        self.become(self.states[moment])

    def undo_last(self, count: int) -> None:
        self.undone.append(self.saved())
        self.become(self.before[-count])

    def redo(self) -> None:
        self.become(self.undone.pop())

    def restore(self, path: bytes, moment: str) -> None:
        raise NotImplementedError

    def remount(self) -> None:
        self.become(self.saved())

    def kill(self) -> None:
        raise NotImplementedError

    def finish(self) -> list[str]:
        return self.check()

    def become(self, other: ReferenceFs) -> None:
        copy = other.with_handles_of(self)
        self._root, self._nodes = copy._root, copy._nodes

    def _note(self) -> None:
        """What undo_last needs: the state before each change that is one record."""
        self.before.append(self.saved())


def _noting(name: str) -> None:
    change = getattr(ReferenceFs, name)

    def noted(self: MemoryDriver, *args: Any) -> None:
        self._note()
        change(self, *args)

    setattr(MemoryDriver, name, noted)


for _name in (
    "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "chmod", "chown",
    "utimens", "touch", "truncate", "setxattr", "removexattr",
):  # fmt: skip
    _noting(_name)


class RenameForgetsLinks(MemoryDriver):
    """Replacing a name drops the replaced file's other names' link count, too."""

    def _require_replaceable(self, source: Node, target: Node) -> None:
        super()._require_replaceable(source, target)
        if target.nlink > 1:
            target.nlink -= 1


class TruncateKeepsOldBytes(MemoryDriver):
    """Shrunk, then grown: what was cut off comes back."""

    def _resize(self, node: Node, size: int) -> None:
        old = getattr(self, "cut", b"")
        self.cut = node.data
        if size > len(node.data) and old.startswith(node.data) and len(old) >= size > 0:
            node.put_data(old[:size])
        else:
            super()._resize(node, size)


class RenameReplacesFullDirectories(MemoryDriver):
    def _require_replaceable(self, source: Node, target: Node) -> None:
        if not (source.is_dir and target.is_dir):
            super()._require_replaceable(source, target)


class UnlinkLosesOpenFiles(MemoryDriver):
    """The last name gone, the bytes are gone, whoever has it open."""

    def _remove(self, parent: Node, name: bytes) -> None:
        node = self._nodes[parent.children[name]]
        super()._remove(parent, name)
        if not node.nlink and not node.is_dir:
            node.data = b""


class ChmodTouches(MemoryDriver):
    """chmod(2) changes the ctime, not the mtime."""

    def chmod(self, path: bytes, mode: int) -> None:
        super().chmod(path, mode)
        node = self._node(path, follow=True)
        node.mtime_ns = time.time_ns()


class ChmodForgetsTheMask(MemoryDriver):
    """chmod(2) sets the mask of an ACL."""

    def chmod(self, path: bytes, mode: int) -> None:
        node = self._node(path, follow=True)
        access = node.access
        super().chmod(path, mode)
        node.access = access


class StickyIsForgotten(MemoryDriver):
    def unlink(self, path: bytes) -> None:
        parent, _ = self._parent(path)
        mode, parent.mode = parent.mode, parent.mode & ~0o1000
        try:
            super().unlink(path)
        finally:
            parent.mode = mode


class WriteKeepsSetIds(MemoryDriver):
    def pwrite(self, fh: int, data: bytes, offset: int) -> int:
        node = self._nodes[self._open[fh].ino]
        mode = node.mode
        written = super().pwrite(fh, data, offset)
        node.mode = mode
        return written


class HistoryForgetsXattrs(MemoryDriver):
    def moment(self) -> str:
        name = super().moment()
        for node in self.states[name]._nodes.values():
            node.xattrs, node.access, node.default = {}, None, None
        return name


class HistoryIsThePresent(MemoryDriver):
    def tree_at(self, moment: str) -> Tree:
        return self.tree()


class UndoLeavesModes(MemoryDriver):
    def undo_since(self, moment: str) -> None:
        now = {ino: node.mode for ino, node in self._nodes.items()}
        super().undo_since(moment)
        for ino, node in self._nodes.items():
            node.mode = now.get(ino, node.mode)


class UndoLastUndoesTwo(MemoryDriver):
    def undo_last(self, count: int) -> None:
        super().undo_last(min(count + 1, len(self.before)))


class RedoDoesNothing(MemoryDriver):
    def redo(self) -> None:
        self.undone.pop()


class RemountLosesTimes(MemoryDriver):
    def remount(self) -> None:
        super().remount()
        for node in self._nodes.values():
            node.mtime_ns = 0


def test_a_second_reference_passes() -> None:
    """History, undo and redo included: what fails on a mount is then not the machine's."""
    run(MemoryDriver, examples=30)


@pytest.mark.parametrize(
    ("broken", "rules"),
    [
        (RenameForgetsLinks, (NameRules,)),
        (RenameReplacesFullDirectories, (NameRules,)),
        (TruncateKeepsOldBytes, (FileRules,)),
        (UnlinkLosesOpenFiles, (FileRules,)),
        (WriteKeepsSetIds, (AttributeRules, FileRules)),
        (ChmodTouches, (AttributeRules,)),
        (ChmodForgetsTheMask, (AttributeRules,)),
        (StickyIsForgotten, (NameRules,)),
        (HistoryForgetsXattrs, (AttributeRules, TimeRules)),
        (HistoryIsThePresent, (NameRules, TimeRules)),
        (UndoLeavesModes, (AttributeRules, TimeRules)),
        (UndoLastUndoesTwo, (NameRules, TimeRules)),
        (RedoDoesNothing, (NameRules, TimeRules)),
        (RemountLosesTimes, (AttributeRules, TimeRules)),
    ],
)
def test_a_broken_filesystem_is_found(broken: type[MemoryDriver], rules: Rules) -> None:
    """By the rules about what is broken in it: with all of them it takes longer."""
    with pytest.raises((AssertionError, KeyError)):
        run(broken, examples=400, rules=rules)


def run(driver: type[MemoryDriver], *, examples: int, rules: Rules = ALL) -> None:
    def new_driver() -> Driver:
        return driver()

    run_state_machine_as_test(
        machine_for(new_driver, rules),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
