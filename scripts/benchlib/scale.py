"""What a store costs when it has grown: every figure beside that of a small store.

Both stores are made by the engine (``generator.py``), and measured in turns in one process, but
for the time to mount and the daemon's memory: the same work in a place of the same size, as
programs do it, and some of it all over the stores. Where something became slower than the store's
size excuses, the statements behind it are shown with SQLite's plan for them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import apsw

from benchlib.counting import own_memory_bytes, peak_memory_bytes
from benchlib.generator import Size, make_store
from benchlib.report import align, number, ratio
from benchlib.systems import Nexus, default_nexus_ctl
from nexus_engine.commands import Request, execute, ignore_progress
from nexus_engine.fs import attributes, namespace
from nexus_engine.fs.attributes import NewAttributes
from nexus_engine.history.moments import latest_moments
from nexus_engine.history.versions import versions
from nexus_engine.meta.reader import AsOfReader
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Ino, Name, Seq

SMALL = Size(files=10_000, records=100_000)
ROUNDS = 5
MOUNTS = 3
STATEMENTS_SHOWN = 3
PARAMETERS_MAX = 50
TOLERATED = 1.2
PAGE = 1000
SAMPLE = 200
PLACE_DIRECTORIES = 50
"""All that the small store has, but for the wide one."""
ACTOR = Actor(0, 0, os.getpid(), 1, "bench", 1, "bench")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the store, found by chance."""

    parent: Ino
    name: Name
    ino: Ino
    path: str
    named: Seq
    """The operation that gave it this name."""


class Grown:
    """An open store, and what can be done in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path)
        self.store.announce_writing()
        self._rng = random.Random(str(path))
        self._head = self.store.reader.head()
        self._serial = 0
        wide = self.store.reader.find_child(ROOT_INO, Name(b"wide"))
        assert wide is not None
        self._wide = wide.ino
        self._place = self._some_place()
        agents = "SELECT DISTINCT agent FROM actor WHERE agent LIKE 'agent-%'"
        self._agents = [agent for (agent,) in self.store.database.connection.all(agents)]

    def close(self) -> None:
        self.store.close()

    def sample(self, count: int) -> list[Entry]:
        """Return files of one place, which is as large in a large store as in a small one."""
        return self._rng.sample(self._place, min(count, len(self._place)))

    def sample_anywhere(self, count: int) -> list[Entry]:
        """Return files of the whole store: in a large one nothing about them is in memory."""
        reader = self.store.reader
        found: list[Entry] = []
        highest = reader.store_value("next_ino")
        while len(found) < count:
            for dentry in reader.dentries_of(Ino(self._rng.randrange(2, highest))):
                path = reader.find_path(dentry.parent)
                if dentry.kind == 0o100000 and path is not None:
                    name = path + b"/" + dentry.name
                    entry = Entry(
                        dentry.parent, dentry.name, dentry.ino, name.decode(), dentry.from_seq
                    )
                    found.append(entry)
        return found

    def _some_place(self) -> list[Entry]:
        """Return the files of some directories side by side."""
        group, path = self._rng.choice(self._below(ROOT_INO, ""))
        reader = self.store.reader
        return [
            Entry(ino, dentry.name, dentry.ino, f"{path}/{dentry.name.decode()}", dentry.from_seq)
            for ino, path in self._below(group, path + "/")[:PLACE_DIRECTORIES]
            for entry in reader.list_children(ino, 0, PAGE)
            for dentry in reader.dentries_of(entry.inode.ino)
        ]

    def _below(self, parent: Ino, prefix: str) -> list[tuple[Ino, str]]:
        """Return the directories in one but for the wide one, with their paths."""
        entries = self.store.reader.list_children(parent, 0, PAGE)
        named = [(e.inode.ino, prefix + e.name.decode()) for e in entries if e.inode.is_dir]
        return [(ino, path) for ino, path in named if ino != self._wide]

    # Each of these returns how many times it did what it measures.

    def lookup(self, entries: list[Entry]) -> int:
        for entry in entries:
            assert self.store.reader.find_child(entry.parent, entry.name) is not None
        return len(entries)

    def lookup_past(self, entries: list[Entry]) -> int:
        """Look up what had its name already, at a moment when at least half of them had."""
        view = self._view(sorted(entry.named for entry in entries)[len(entries) // 2])
        there = [entry for entry in entries if entry.named <= view.seq]
        for entry in there:
            assert view.find_child(entry.parent, entry.name) is not None
        return len(there)

    def miss_past(self, entries: list[Entry]) -> int:
        view = self._view(Seq(self._head // 2))
        for entry in entries:
            assert view.find_child(entry.parent, Name(entry.name + b"-none")) is None
        return len(entries)

    def _view(self, since: Seq) -> AsOfReader:
        return self.store.database.as_of(Seq(self._rng.randrange(since, self._head)))

    def list_wide(self, entries: list[Entry]) -> int:
        count = after = 0
        while page := self.store.reader.list_children(self._wide, after, PAGE):
            count, after = count + len(page), page[-1].cookie
        return count

    def list_wide_past(self, entries: list[Entry]) -> int:
        view = self.store.database.as_of(Seq(self._head * 3 // 4))
        return len(view.list_children(self._wide, 0, PAGE))

    def create(self, entries: list[Entry]) -> int:
        for entry in entries:
            self._serial += 1
            name = Name(b"%d-%d" % (time.time_ns(), self._serial))
            self.store.transact(namespace.make, ACTOR, entry.parent, name, 0o100644)
        return len(entries)

    def chmod(self, entries: list[Entry]) -> int:
        for entry in entries:
            self._chmod(entry)
        return len(entries)

    def _chmod(self, entry: Entry) -> None:
        mode = NewAttributes(mode=self._rng.randrange(0o777))
        self.store.transact(attributes.set_attributes, ACTOR, entry.ino, mode)

    def history(self, entries: list[Entry]) -> int:
        for entry in entries[:20]:
            latest_moments(self.store.database, entry.parent, 20, time.time_ns())
        return 20

    def history_of_root(self, entries: list[Entry]) -> int:
        latest_moments(self.store.database, ROOT_INO, 20, time.time_ns())
        return 1

    def versions(self, entries: list[Entry]) -> int:
        for entry in entries[:20]:
            versions(self.store.database, entry.parent, entry.name)
        return 20

    def log_of_path(self, entries: list[Entry]) -> int:
        for entry in entries[:20]:
            self._execute("log", path=entry.path)
        return 20

    def log_of_directory(self, entries: list[Entry]) -> int:
        for entry in entries[:20]:
            self._execute("log", path=os.path.dirname(entry.path))
        return 20

    def log_of_agent(self, entries: list[Entry]) -> int:
        self._execute("log", agent=self._rng.choice(self._agents))
        return 1

    def log_of_process(self, entries: list[Entry]) -> int:
        self._execute("log", pid=self._rng.randrange(1, 500))
        return 1

    def undo(self, entries: list[Entry]) -> int:
        for _ in entries[:20]:
            self._execute("undo", last=1)
        return 20

    def undo_of_agent(self, entries: list[Entry]) -> int:
        self._execute("undo", agent=self._rng.choice(self._agents), last=1, dry_run=True)
        return 1

    def plan(self, sql: str) -> list[str]:
        """Return how SQLite goes about a statement."""
        if not sql.lstrip().upper().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
            return []
        # Any values will do, if there are as many as it takes.
        for arguments in range(PARAMETERS_MAX):
            with suppress(apsw.BindingsError):
                explain = f"EXPLAIN QUERY PLAN {sql}"
                rows = self.store.database.connection.all(explain, (None,) * arguments)
                return [row[3] for row in rows]
        return []

    def _execute(self, verb: str, **arguments: object) -> None:
        execute(self.store, Request(verb, arguments), ACTOR, ignore_progress)


Action = Callable[[Grown, list[Entry]], int]
Sampling = Callable[[Grown, int], list[Entry]]
MEASURES: dict[str, Action] = {
    "lookup": Grown.lookup,
    "lookup, as of": Grown.lookup_past,
    "lookup of what was never there, as of": Grown.miss_past,
    "readdir, an entry": Grown.list_wide,
    "readdir as of, 1,000": Grown.list_wide_past,
    "create": Grown.create,
    "chmod": Grown.chmod,
    "undo --last 1": Grown.undo,
    "plan of undo --agent": Grown.undo_of_agent,
    "history of a directory": Grown.history,
    "history of the root": Grown.history_of_root,
    "versions of a file": Grown.versions,
    "log of a file": Grown.log_of_path,
    "log of a directory": Grown.log_of_directory,
    "log of an agent": Grown.log_of_agent,
    "log of a process": Grown.log_of_process,
}
ANYWHERE = ("lookup", "lookup, as of", "create", "chmod")
"""Measured all over the stores as well."""


class Profile:
    """Number and time of each statement, of connections that are opened after this."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[int, int]] | None = None
        apsw.connection_hooks.append(self._watch)

    def statements(self, action: Callable[[], object]) -> dict[str, tuple[int, int]]:
        """Return what an action runs: SQL → (how often, nanoseconds in all)."""
        spent: dict[str, tuple[int, int]] = {}
        self._spent = spent
        action()
        self._spent = None
        return spent

    def _watch(self, connection: apsw.Connection) -> None:
        connection.set_profile(self._note)

    def _note(self, sql: str, nanoseconds: int) -> None:
        if self._spent is not None:
            count, total = self._spent.get(sql, (0, 0))
            self._spent[sql] = (count + 1, total + nanoseconds)


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    sizes = [SMALL, Size(arguments.files, arguments.records)]
    profile = Profile()
    with ExitStack() as stack:
        directory = arguments.keep
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="nexus-bench-", dir=arguments.directory)
            directory = Path(stack.enter_context(temporary))
        paths = [_made(directory, size) for size in sizes]
        rows = [["", "", *(f"{size.files:,} files" for size in sizes), "growth"]]
        rows += _mounted_rows(paths, directory, arguments.nexus_ctl)
        small, large = map(Grown, paths)
        stack.callback(small.close)
        stack.callback(large.close)
        engine_rows, plans = _engine_rows(small, large, profile)
        print(align([("", 2), ("", 2), ("", 1)], rows + engine_rows))
        print("\n".join(plans))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench scale",
        description="Make a large store through the engine, and measure it beside a small one of "
        f"{SMALL.files:,} files and {SMALL.records:,} records.",
    )
    parser.add_argument("--files", type=int, default=100_000, metavar="N")
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the stores there, or find them there"
    )
    parser.add_argument("--nexus-ctl", type=Path, default=default_nexus_ctl(), metavar="PATH")
    return parser.parse_args(argv)


def _made(directory: Path, size: Size) -> Path:
    """Return a store of this size; makes it where it is not there."""
    path = directory / f"store-{size.files}-{size.records}"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    started = time.monotonic()

    def progress(records: int) -> None:
        rate = records / (time.monotonic() - started)
        print(f"{records:,} records, {rate:,.0f} a second", file=sys.stderr, flush=True)

    make_store(unfinished, size, progress)
    unfinished.rename(path)
    return path


def _mounted_rows(paths: list[Path], directory: Path, ctl: Path) -> list[list[str]]:
    """Return the rows of what only a mount has."""
    mounting: list[list[float]] = [[], []]
    memory, peak = [0.0, 0.0], [0.0, 0.0]
    for _ in range(MOUNTS):
        for index, path in enumerate(paths):
            system = Nexus(directory, ctl, store=path)
            started = time.perf_counter()
            try:
                system.start(None)
                mounting[index].append(time.perf_counter() - started)
                for _ in os.walk(system.root):
                    pass  # Listing is what fills the caches.
                os.listdir(system.root / ".nexus" / "history")
                pids = system.daemon_pids()
                memory[index] = own_memory_bytes(pids) / (1 << 20)
                peak[index] = peak_memory_bytes(pids) / (1 << 20)
            finally:
                system.stop()
                system.root.rmdir()
    times = [median(some) for some in mounting]
    return [
        _row("mount", "s", *times),
        _row("memory after a walk", "MiB", *memory),
        _row("with mapped files", "MiB", *peak),
    ]


def _engine_rows(small: Grown, large: Grown, profile: Profile) -> tuple[list[list[str]], list[str]]:
    """Return the rows of what the engine does, and the plans of what has grown."""
    rows, plans = [], []
    for name, action in MEASURES.items():
        before, after = _in_turns(action, small, large, Grown.sample)
        rows.append(_row(name, "µs", before, after))
        if after > before * TOLERATED:
            plans.append(f"{name}: {number(before)} → {number(after)} µs")
            plans += _explain(action, small, large, profile)
    for name in ANYWHERE:
        times = _in_turns(MEASURES[name], small, large, Grown.sample_anywhere)
        rows.append(_row(f"{name}, anywhere", "µs", *times))
    return rows, plans


def _in_turns(action: Action, small: Grown, large: Grown, sample: Sampling) -> tuple[float, float]:
    """Return what an action takes in each store, µs."""
    times: dict[Grown, list[float]] = {small: [], large: []}
    for _ in range(ROUNDS):
        for store in (small, large):
            entries = sample(store, SAMPLE)
            action(store, entries[:10])
            started = time.perf_counter()
            count = action(store, entries)
            times[store].append((time.perf_counter() - started) / count * 1e6)
    return median(times[small]), median(times[large])


def _explain(action: Action, small: Grown, large: Grown, profile: Profile) -> Iterator[str]:
    """Yield the statements that grew most, with their plans."""
    samples = {store: store.sample(SAMPLE) for store in (small, large)}
    before = profile.statements(lambda: action(small, samples[small]))
    after = profile.statements(lambda: action(large, samples[large]))

    def growth(sql: str) -> tuple[int, int]:
        (old_count, old_ns), (count, ns) = before.get(sql, (0, 0)), after[sql]
        return ns - old_ns, count - old_count  # SQLite's clock ticks in milliseconds

    for sql in sorted(after, key=growth, reverse=True)[:STATEMENTS_SHOWN]:
        (old_count, old_ns), (count, ns) = before.get(sql, (0, 0)), after[sql]
        yield f"  {old_count} times {old_ns / 1e6:.2f} ms → {count} times {ns / 1e6:.2f} ms"
        yield f"    {' '.join(sql.split())}"
        for step in large.plan(sql):
            yield f"      {step}"


def _row(name: str, unit: str, before: float, after: float) -> list[str]:
    return [name, unit, number(before), number(after), ratio(after / before)]
