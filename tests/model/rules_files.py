"""Rules about content: opening, reading, writing, mapping, truncating, copying."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import consumes, multiple, rule

from . import strategies as draw
from .comparison import handles, names
from .permissions import Caller
from .planted import PlantedMachine
from .strategies import Existing, Fill, Spot, Step, Under
from .tree import Kind

WHOLE = 8 << 20
"""More than any file has."""


class FileRules(PlantedMachine):
    @rule(target=handles, place=draw.unders(names), flags=draw.create_flags,
          mode=draw.modes, who=draw.callers)  # fmt: skip
    def create(self, place: Spot, flags: int, mode: int, who: Caller) -> Any:
        path = self._path(place)
        self._as(who)
        return self._opened(path if self._has_room() else None, flags, mode)

    @rule(target=handles, place=draw.spots(names, Kind.FILE), flags=draw.open_flags,
          who=draw.callers)  # fmt: skip
    def open(self, place: Spot, flags: int, who: Caller) -> Any:
        path = self._path(place)
        self._as(who)
        return self._opened(path, flags, 0)

    @rule(target=handles, fh=handles, flags=draw.open_flags)
    def open_again(self, fh: int, flags: int) -> Any:
        """What a handle is of, whether it still has a name or not."""
        return self._opened_again(fh, flags & ~os.O_NOFOLLOW)

    @rule(target=handles, place=draw.existing(Kind.FILE), flags=draw.open_flags)
    def open_then_unlink(self, place: Existing, flags: int) -> Any:
        path = self._path(place)
        if path is None:
            return multiple()
        done = self._open(path, flags, 0)
        self._same("unlink", path)
        if done.code is not None:
            return multiple()
        self._on_handle("pread", done.value, WHOLE, 0)
        self._on_handle("fstat", done.value)
        return done.value

    @rule(target=handles, place=draw.existing(Kind.FILE), other=draw.existing(Kind.FILE),
          flags=draw.open_flags, fill=draw.fills)  # fmt: skip
    def open_then_replace(self, place: Existing, other: Existing, flags: int, fill: Fill) -> Any:
        """Another file takes the name; what is open stays what it is."""
        path = self._path(place)
        if path is None:
            return multiple()
        done = self._open(path, flags, 0)
        self._rename(self._path(other), path, 0)
        if done.code is not None:
            return multiple()
        self._write(done.value, 1, fill)
        self._on_handle("pread", done.value, WHOLE, 0)
        self._on_handle("fstat", done.value)
        return done.value

    @rule(fh=consumes(handles))
    def close(self, fh: int) -> None:
        self._close(fh)

    @rule(fh=handles, offset=draw.sizes, fill=draw.fills, who=draw.callers)
    def write(self, fh: int, offset: int, fill: Fill, who: Caller) -> None:
        self._as(who)
        self._write(fh, offset, fill)
        self._on_handle("fstat", fh)

    @rule(fh=handles, beyond=draw.sizes, fill=draw.fills)
    def write_beyond_the_end(self, fh: int, beyond: int, fill: Fill) -> None:
        if fh in self.fhs:
            self._write(fh, (self.model.fstat(fh).size or 0) + beyond, fill)

    @rule(fh=handles, offset=draw.sizes, length=draw.lengths)
    def read(self, fh: int, offset: int, length: int) -> None:
        self._on_handle("pread", fh, length, offset)

    @rule(fh=handles, offset=draw.sizes, fill=draw.fills)
    def map(self, fh: int, offset: int, fill: Fill) -> None:
        """Write through one mapping, read through another."""
        if fh not in self.fhs:
            return
        size = self.model.fstat(fh).size or 0
        offset = offset % size if size else 0
        fill = Fill(fill.seed, min(fill.length, size - offset))
        self._write_like("mapped_write", fh, fill.data(), offset)
        self._on_handle("mapped_read", fh, fill.length, offset)

    @rule(source=handles, sink=handles, length=draw.lengths, start=draw.sizes, to=draw.sizes)
    def copy(self, source: int, sink: int, length: int, start: int, to: int) -> None:
        self._copy(source, sink, length, start, to)

    @rule(fh=handles, size=draw.sizes, who=draw.callers)
    def ftruncate(self, fh: int, size: int, who: Caller) -> None:
        self._as(who)
        self._write_like("ftruncate", fh, size)
        self._on_handle("fstat", fh)

    @rule(place=draw.existing(Kind.FILE), down=draw.sizes, up=draw.sizes)
    def truncate_down_and_up(self, place: Existing, down: int, up: int) -> None:
        """What was cut off is gone: zeros are in its place."""
        path = self._path(place)
        if path is None:
            return
        done = self._open(path, os.O_RDWR, 0)
        if done.code is None:
            size = self.model.fstat(done.value).size or 0
            for new in (down % size if size else 0, size + up % 10_000, up):
                self._write_like("ftruncate", done.value, new)
                self._on_handle("pread", done.value, WHOLE, 0)
            self._close(done.value)

    @rule(place=draw.existing(Kind.FILE), mode=draw.set_ids, who=draw.others,
          how=st.sampled_from(["write", "truncate", "O_TRUNC", "copy", "nothing"]))  # fmt: skip
    def change_what_has_set_ids(self, place: Existing, mode: int, who: Caller, how: str) -> None:
        """New content by who is not root takes the set-id bits away."""
        path = self._path(place)
        if path is None or self._same("chmod", path, self._mode(mode)).code is not None:
            return
        self._as(who)
        if how == "truncate":
            self._same("truncate", path, 10)
            return
        done = self._open(path, os.O_RDWR | (os.O_TRUNC if how == "O_TRUNC" else 0), 0)
        if done.code is not None:
            return
        if how == "write":
            self._write(done.value, 0, Fill(3, 3))
        elif how == "copy":
            self._copy(done.value, done.value, 5, 0, 100)
        self._close(done.value)

    @rule(fh=handles, datasync=st.booleans())
    def fsync(self, fh: int, datasync: bool) -> None:
        self._on_handle("fsync", fh, datasync=datasync)

    @rule(fh=handles)
    def fstat(self, fh: int) -> None:
        self._on_handle("fstat", fh)

    @rule(place=draw.spots(names, Kind.FILE), who=draw.callers,
          size=st.one_of(draw.sizes, draw.sizes, st.just(-1)))  # fmt: skip
    def truncate(self, place: Spot, size: int, who: Caller) -> None:
        path = self._path(place)
        if path is not None:
            self._as(who)
            self._once("truncate", path, size)

    @rule(place=draw.unders(names), fill=draw.fills, mode=draw.modes, who=draw.callers)
    def write_file(self, place: Spot, fill: Fill, mode: int, who: Caller) -> None:
        """What most programs do: open, write, close."""
        path = self._path(place)
        if path is not None and self._has_room():
            self._as(who)
            self._write_file(path, fill, mode)
            self._note_operation()

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
            self._on_handle("pread", done.value, WHOLE, 0)
            self._close(done.value)
