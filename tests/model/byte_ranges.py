"""One file, many descriptors: random reads, writes and truncates against a plain image.

What an operation does is drawn without looking at the file, so that any part of a run can be run
again by itself: a failure is cut down to the operations that it needs. Each clips what it was
given to what makes sense at that moment, or does nothing.

After every operation the size, and the bytes around the place, must be those of the image, seen
through another descriptor and half the time with the page cache emptied.

Source: read(2), write(2), open(2), truncate(2), mmap(2), copy_file_range(2), posix_fadvise(2).
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PAGE = mmap.PAGESIZE
MAP_NORESERVE = 0x4000  # mmap has no name for it before Python 3.13
SLOTS = 4
AROUND = 100
"""Bytes before and after a change that must have stayed as they were."""
FULL_EVERY = 40

KINDS = (
    *("read",) * 4, *("write",) * 7, *("append",) * 2, *("truncate",) * 2, "truncate path",
    *("map",) * 2, *("mapread",) * 2, *("mapwrite",) * 3, "unmap", "copy", "copy", "sync",
    *("reopen",) * 3, "close",
)  # fmt: skip
RARE = ("remount", "remember", "kill")
RARELY = 1 / 150

_FLAGS = (
    *(os.O_RDWR,) * 4, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND,
    os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_DIRECT,
    os.O_WRONLY | os.O_DIRECT, os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """Where in a file things happen: in windows of ``span`` bytes from each of ``bases``.

    Half the places lie within a few bytes of a multiple of one of ``edges``.
    """

    bases: tuple[int, ...]
    span: int
    longest: int
    edges: tuple[int, ...] = (PAGE,)

    @property
    def window(self) -> int:
        """Bytes from a base that can be other than a hole."""
        return self.span + self.longest

    @property
    def limit(self) -> int:
        return max(self.bases) + self.window

    def place(self, chance: random.Random) -> int:
        base, edge = chance.choice(self.bases), chance.choice(self.edges)
        within = chance.randrange(self.span)
        if chance.random() < 0.5:
            within = max(0, within // edge * edge + chance.randint(-3, 3))
        return base + within

    def length(self, chance: random.Random) -> int:
        edge = chance.choice(self.edges)
        odd = chance.randint(1, chance.choice((16, PAGE, self.longest)))
        even = edge * chance.randint(1, max(1, self.longest // edge))
        return chance.choice((odd, odd, even, even + chance.randint(-2, 2)))


@dataclass(frozen=True, slots=True)
class Operation:
    """What is to be done; ``other`` is where a copy reads, or the flags of a reopen."""

    kind: str
    slot: int
    place: int
    length: int
    other: int
    seed: int


def drawn(shape: Shape, seed: int, count: int) -> list[Operation]:
    """Return the operations of a seed."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        kind = chance.choice(RARE if chance.random() < RARELY else KINDS)
        place, length, source = shape.place(chance), shape.length(chance), shape.place(chance)
        other = chance.choice(_FLAGS) if kind == "reopen" else source
        found.append(Operation(kind, chance.randrange(SLOTS), place, length, other, number))
    return found


class Image:
    """What the file must be: anonymous memory, of which only what was written takes room."""

    def __init__(self, limit: int) -> None:
        self._limit = -(-limit // PAGE) * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, self._limit, flags=flags)
        self.size = 0

    def read(self, start: int, length: int) -> bytes:
        return self._memory[start : max(start, min(start + length, self.size))]

    def write(self, start: int, data: bytes) -> None:
        self._memory[start : start + len(data)] = data
        self.size = max(self.size, start + len(data))

    def truncate(self, size: int) -> None:
        if size < self.size:
            edge = min(-(-size // PAGE) * PAGE, self._limit)
            self._memory[size:edge] = bytes(edge - size)
            if edge < self._limit:
                self._memory.madvise(mmap.MADV_DONTNEED, edge, self._limit - edge)
        self.size = size

    def close(self) -> None:
        self._memory.close()


class Mismatch(AssertionError):
    """The file is not what it should be; ``at`` is a byte that is wrong, or its size."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.at = at


@dataclass(slots=True)
class Slot:
    """A descriptor, and a mapping that may outlive it."""

    fd: int = -1
    flags: int = 0
    mapping: mmap.mmap | None = None
    mapped_from: int = 0

    @property
    def readable(self) -> bool:
        return self.fd >= 0 and self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.fd >= 0 and self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def mappable(self) -> bool:
        return self.readable and self.writable

    @property
    def appends(self) -> bool:
        return self.writable and bool(self.flags & os.O_APPEND)

    @property
    def direct(self) -> bool:
        return bool(self.flags & os.O_DIRECT)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def unmap(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
        self.mapping = None


@dataclass(slots=True)
class Exerciser:
    """Does operations on one file and on its image.

    ``remount`` stops and starts the file system, ``kill`` does so without a warning; ``remember``
    names the present, and returns where the file as it is now can be read from then on.
    ``unlinked``: the file has no name.
    """

    path: Path
    shape: Shape
    unlinked: bool = False
    remount: Callable[[], None] | None = None
    kill: Callable[[], None] | None = None
    remember: Callable[[], Path] | None = None
    image: Image = field(init=False)
    slots: list[Slot] = field(init=False)
    done: list[tuple[Operation, str]] = field(default_factory=list)
    _past: list[tuple[Path, int, list[bytes]]] = field(default_factory=list)
    _anchor: int = -1
    _directs: bool = True

    def __post_init__(self) -> None:
        self.image = Image(self.shape.limit)
        self.slots = [Slot() for _ in range(SLOTS)]

    def run(self, operations: list[Operation]) -> None:
        """Start with an empty file, do the operations, compare all of it.

        Raises:
            Mismatch: The first difference.
        """
        self._start()
        try:
            for operation in operations:
                self._step(operation)
            self._compare_all()
            self._close_all()
            self._compare_all()
            self._compare_past()
        finally:
            self._close_all()
            self.image.close()
            if self._anchor >= 0:
                os.close(self._anchor)

    def report(self, at: int, *, most: int = 25) -> str:
        """Return the last operations, those that touched a byte marked."""
        lines = [
            f"{number:6} {'*' if self._touched(operation, at) else ' '} {done}"
            for number, (operation, done) in enumerate(self.done)
        ]
        marked = [line for line in lines[:-most] if line[7] == "*"][-most:]
        return "\n".join(marked + lines[-most:])

    def _touched(self, operation: Operation, at: int) -> bool:
        writes = operation.kind in ("write", "append", "mapwrite", "copy")
        return not writes or operation.place <= at < operation.place + operation.length + PAGE

    def _start(self) -> None:
        self.path.write_bytes(b"")
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_DIRECT))
        except OSError:
            self._directs = False
        if self.unlinked:
            self._anchor = os.open(self.path, os.O_RDWR)
            self.path.unlink()
            self.path = Path(f"/proc/self/fd/{self._anchor}")
        self._open(self.slots[0], os.O_RDWR)

    def _close_all(self) -> None:
        for slot in self.slots:
            slot.unmap()
            slot.close()

    def _open(self, slot: Slot, flags: int) -> None:
        slot.close()
        if flags & os.O_DIRECT and not self._directs:
            flags &= ~os.O_DIRECT
        if flags & os.O_TRUNC:
            self.image.truncate(0)
        slot.fd, slot.flags = os.open(self.path, flags | os.O_CLOEXEC), flags

    def _step(self, operation: Operation) -> None:
        self.done.append((operation, f"{operation.kind} …"))
        done = getattr(self, "_" + operation.kind.replace(" ", "_"))(operation)
        self.done[-1] = (operation, f"{operation.kind} {done or '-'}")
        if done is None:
            return
        self._compare_size()
        if len(self.done) % FULL_EVERY == 0:
            self._compare_all()
        else:
            self._compare_around(operation)

    def _slot(self, operation: Operation, suits: Callable[[Slot], bool]) -> Slot | None:
        found = [slot for slot in self.slots if suits(slot)]
        return found[operation.slot % len(found)] if found else None

    # One operation each: what was done, or None where there was nothing to do

    def _read(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.readable)
        if slot is None:
            return None
        start, length = _aligned(operation.place, operation.length, slot.direct)
        self._require_bytes("read", _read(slot.fd, start, length, slot.direct), start, length)
        return f"{start}+{length}"

    def _write(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.writable and not slot.appends)
        if slot is None:
            return None
        start, length = _aligned(operation.place, operation.length, slot.direct)
        if start + length > self.shape.limit:
            return None
        data = _bytes(operation.seed, length)
        written = _write(slot.fd, data, start, slot.direct)
        self._require(written == length, f"write returned {written}", start)
        self.image.write(start, data)
        return f"{start}+{length} {_shown(slot)}"

    def _append(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.appends)
        start, length = self.image.size, operation.length
        if slot is None or start + length > self.shape.limit:
            return None
        data = _bytes(operation.seed, length)
        # pwrite(2): on Linux a descriptor that appends ignores the offset.
        written = os.pwrite(slot.fd, data, operation.place)
        self._require(written == length, f"write returned {written}", start)
        self.image.write(start, data)
        return f"{start}+{length}"

    def _truncate(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.writable)
        if slot is None:
            return None
        os.ftruncate(slot.fd, operation.place)
        before = self.image.size
        self.image.truncate(operation.place)
        return f"{before} to {operation.place}"

    def _truncate_path(self, operation: Operation) -> str:
        os.truncate(self.path, operation.place)
        before = self.image.size
        self.image.truncate(operation.place)
        return f"{before} to {operation.place}"

    def _map(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.mappable)
        start, length = self._within(operation)
        if slot is None or not length:
            return None
        slot.unmap()
        slot.mapping, slot.mapped_from = _mapped(slot.fd, start, length)
        return f"{start}+{length}"

    def _unmap(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.mapping is not None)
        if slot is None:
            return None
        slot.unmap()
        return "done"

    def _mapread(self, operation: Operation) -> str | None:
        with self._mapping(operation) as (mapping, base, start, length):
            if mapping is None:
                return None
            found = mapping[start - base : start - base + length]
            self._require_bytes("a mapping", found, start, length)
        return f"{start}+{length}"

    def _mapwrite(self, operation: Operation) -> str | None:
        with self._mapping(operation) as (mapping, base, start, length):
            if mapping is None:
                return None
            data = _bytes(operation.seed, length)
            mapping[start - base : start - base + length] = data
            if operation.seed % 3 == 0:
                mapping.flush()
        self.image.write(start, data)
        return f"{start}+{length}"

    def _copy(self, operation: Operation) -> str | None:
        source = self._slot(operation, lambda slot: slot.readable and not slot.direct)
        sink = self._slot(
            operation, lambda slot: slot.writable and not slot.appends and not slot.direct
        )
        length = min(operation.length, self.image.size - operation.other)
        start, end = operation.place, operation.place + length
        overlaps = operation.other < end and start < operation.other + length
        if source is None or sink is None or length <= 0 or end > self.shape.limit or overlaps:
            return None
        done = 0
        while done < length:
            done += (
                more := os.copy_file_range(
                    source.fd, sink.fd, length - done, operation.other + done, start + done
                )
            )
            self._require(more > 0, f"copy_file_range ended after {done} bytes", start + done)
        self.image.write(start, self.image.read(operation.other, length))
        return f"{operation.other}+{length} to {start}"

    def _sync(self, operation: Operation) -> str | None:
        slot = self._slot(operation, lambda slot: slot.fd >= 0)
        if slot is None:
            return None
        (os.fsync if operation.seed % 2 else os.fdatasync)(slot.fd)
        return "done"

    def _reopen(self, operation: Operation) -> str:
        slot = self.slots[operation.slot]
        self._open(slot, operation.other)
        return _shown(slot)

    def _close(self, operation: Operation) -> str:
        self.slots[operation.slot].close()
        return f"slot {operation.slot}"

    def _remount(self, operation: Operation) -> str | None:
        if self.remount is None or self.unlinked:
            return None
        self._close_all()
        self.remount()
        self._compare_past()
        return "done"

    def _kill(self, operation: Operation) -> str | None:
        if self.kill is None or self.unlinked:
            return None
        self._close_all()
        self.kill()
        self._compare_past()
        return "done"

    def _remember(self, operation: Operation) -> str | None:
        if self.remember is None or self.unlinked:
            return None
        for slot in self.slots:
            # What a mapping changed is in the file at the latest when it is unmapped.
            slot.unmap()
        contents = [self.image.read(base, self.shape.window) for base in self.shape.bases]
        self._past.append((self.remember(), self.image.size, contents))
        return str(self._past[-1][0])

    # Inside

    def _within(self, operation: Operation) -> tuple[int, int]:
        """Return a range that the file has: a mapping beyond its end would be a SIGBUS."""
        size = self.image.size
        start = operation.place % size if size else 0
        return start, min(operation.length, size - start)

    @contextmanager
    def _mapping(self, operation: Operation) -> Iterator[tuple[mmap.mmap | None, int, int, int]]:
        """Yield a mapping that was made before if one fits, else a new one, else None."""
        start, length = self._within(operation)
        kept = self._slot(operation, lambda slot: slot.mapping is not None)
        if length and kept is not None and kept.mapping is not None:
            base = kept.mapped_from
            if base <= start < base + len(kept.mapping):
                yield kept.mapping, base, start, min(length, base + len(kept.mapping) - start)
                return
        slot = self._slot(operation, lambda slot: slot.mappable)
        if slot is None or not length:
            yield None, 0, 0, 0
            return
        mapping, base = _mapped(slot.fd, start, length)
        try:
            yield mapping, base, start, length
        finally:
            mapping.close()

    @contextmanager
    def _reader(self, operation: Operation | None = None) -> Iterator[int]:
        slot = None
        if operation is not None:
            slot = self._slot(operation, lambda slot: slot.readable and not slot.direct)
        if slot is not None:
            yield slot.fd
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _compare_size(self) -> None:
        sizes = {os.fstat(slot.fd).st_size for slot in self.slots if slot.fd >= 0}
        sizes.add(self.path.stat().st_size)
        self._require(sizes == {self.image.size}, f"the size is {sizes}", self.image.size)

    def _compare_around(self, operation: Operation) -> None:
        with self._reader(operation) as fd:
            if operation.seed % 2:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for place in (operation.place, self.image.size):
                start = max(0, place - AROUND)
                length = min(operation.length, self.shape.longest) + 2 * AROUND
                found = os.pread(fd, length, start)
                self._require_bytes(f"after {operation.kind}, read", found, start, length)

    def _compare_all(self) -> None:
        with self._reader() as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for base in self.shape.bases:
                found = _whole(fd, base, self.shape.window)
                self._require_bytes("a new reader", found, base, self.shape.window)

    def _compare_past(self) -> None:
        for path, size, contents in self._past:
            found = path.stat().st_size
            self._require(found == size, f"{path}: size {found}, was {size}", size)
            fd = os.open(path, os.O_RDONLY)
            try:
                for base, expected in zip(self.shape.bases, contents, strict=True):
                    got = _whole(fd, base, self.shape.window)
                    at = _first_difference(expected, got)
                    self._require(at is None, f"{path}: differs at {base} + {at}", base)
            finally:
                os.close(fd)

    def _require_bytes(self, what: str, found: bytes, start: int, length: int) -> None:
        expected = self.image.read(start, length)
        if found != expected:
            self._require(
                len(found) == len(expected),
                f"{what} of {length} at {start}: {len(found)} bytes, not {len(expected)}",
                start + min(len(found), len(expected)),
            )
            at = _first_difference(expected, found) or 0
            raise Mismatch(
                f"{what} of {length} at {start}: at byte {start + at}"
                f" {found[at : at + 8]!r}, not {expected[at : at + 8]!r}",
                start + at,
            )

    def _require(self, holds: bool, what: str, at: int) -> None:
        if not holds:
            raise Mismatch(f"{what}; the file should have {self.image.size} bytes", at)


def smallest(
    operations: list[Operation], fails: Callable[[list[Operation]], bool]
) -> list[Operation]:
    """Return a part of the operations that still fails, by leaving out ever smaller pieces."""
    piece = len(operations) // 2
    while piece:
        start = 0
        while start < len(operations):
            rest = operations[:start] + operations[start + piece :]
            if fails(rest):
                operations = rest
            else:
                start += piece
        piece //= 2
    return operations


def _bytes(seed: int, length: int) -> bytes:
    if seed % 16 == 0:
        return bytes(length)
    return random.Random(seed).randbytes(length)


def _aligned(start: int, length: int, direct: bool) -> tuple[int, int]:
    if not direct:
        return start, length
    return start // PAGE * PAGE, -(-length // PAGE) * PAGE


def _mapped(fd: int, start: int, length: int) -> tuple[mmap.mmap, int]:
    base = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    return mmap.mmap(fd, start - base + length, offset=base), base


def _read(fd: int, start: int, length: int, direct: bool) -> bytes:
    if not direct:
        return os.pread(fd, length, start)
    with mmap.mmap(-1, length) as buffer:  # aligned, as O_DIRECT wants it
        return buffer[: os.preadv(fd, [buffer], start)]


def _write(fd: int, data: bytes, start: int, direct: bool) -> int:
    if not direct:
        return os.pwrite(fd, data, start)
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        return os.pwritev(fd, [buffer], start)


def _whole(fd: int, start: int, length: int) -> bytes:
    parts = []
    while length and (part := os.pread(fd, length, start)):
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def _first_difference(expected: bytes, found: bytes) -> int | None:
    if expected == found:
        return None
    pairs = enumerate(zip(expected, found, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(expected), len(found)))


_NAMES = {os.O_APPEND: "append", os.O_SYNC: "sync", os.O_DIRECT: "direct", os.O_TRUNC: "trunc"}


def _shown(slot: Slot) -> str:
    access = ("rdonly", "wronly", "rdwr")[slot.flags & os.O_ACCMODE]
    return " ".join([access, *(name for flag, name in _NAMES.items() if slot.flags & flag)])
