"""Read the rows of a database file page by page, as far as they can be read.

For salvage: SQLite gives up at the first page that is not as it should be. Here each cell stands by
itself; what makes no sense is left out.

Source: https://sqlite.org/fileformat2.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

_TABLE_LEAF, _TABLE_INSIDE, _INDEX_LEAF, _INDEX_INSIDE = 0x0D, 0x05, 0x0A, 0x02
_HEADER_BYTES = 100
_PAYLOAD_MAX = 1 << 24
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class _Damaged(Exception):
    """A page or cell that makes no sense."""


class Tree(NamedTuple):
    """A table or index: its rows, each with its rowid (``None`` in an index)."""

    rows: list[tuple[int | None, Row]]
    whole: bool
    """Every page and cell of it could be read."""


class PageFile:
    """A database file; memory is bounded by its size."""

    def __init__(self, path: Path) -> None:
        self._bytes = path.read_bytes()
        size = int.from_bytes(self._bytes[16:18], "big")
        self.page_bytes = 65536 if size == 1 else size
        if self.page_bytes < 512 or self.page_bytes & (self.page_bytes - 1):
            self.page_bytes = 4096
        self._usable = self.page_bytes - (self._bytes[20] if len(self._bytes) > 20 else 0)
        self.count = len(self._bytes) // self.page_bytes
        self._seen: set[int] = set()

    def schema(self) -> list[tuple[str, str, int]]:
        """Return (type, name, root page) of tables and indexes, as far as page 1 tells."""
        found = []
        for _, row in self.tree(1).rows:
            if len(row) == 5 and isinstance(row[1], str) and isinstance(row[3], int) and row[3]:
                found.append((str(row[0]), row[1], row[3]))
        return found

    def tree(self, root: int) -> Tree:
        """Return what a table or index holds."""
        rows: list[tuple[int | None, Row]] = []
        whole, todo = True, [root]
        while todo:
            number = todo.pop()
            if number in self._seen:
                whole = False
                continue
            self._seen.add(number)
            found, children, intact = self._page(number)
            rows += found
            todo += children
            whole = whole and intact
        return Tree(rows, whole)

    def orphans(self) -> Iterator[tuple[bool, list[tuple[int | None, Row]]]]:
        """Yield (is it a table's, rows) of pages that no tree led to, and that are not free."""
        free = self._free_pages()
        for number in range(2, self.count + 1):
            if number not in self._seen and number not in free:
                rows, _, _ = self._page(number)
                if rows:
                    yield rows[0][0] is not None, rows

    def _free_pages(self) -> set[int]:
        free: set[int] = set()
        trunk = int.from_bytes(self._bytes[32:36], "big")
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self._raw(trunk)
            entries = min(int.from_bytes(page[4:8], "big"), self.page_bytes // 4 - 2)
            free.update(int.from_bytes(page[8 + 4 * i : 12 + 4 * i], "big") for i in range(entries))
            trunk = int.from_bytes(page[:4], "big")
        return free

    def _raw(self, number: int) -> bytes:
        if not 0 < number <= self.count:
            raise _Damaged
        return self._bytes[(number - 1) * self.page_bytes : number * self.page_bytes]

    def _page(self, number: int) -> tuple[list[tuple[int | None, Row]], list[int], bool]:
        """Return (rows, child pages, whether all of it makes sense)."""
        try:
            page = self._raw(number)
        except _Damaged:
            return [], [], False
        at = _HEADER_BYTES if number == 1 else 0
        kind = page[at]
        inside = kind in (_TABLE_INSIDE, _INDEX_INSIDE)
        if not inside and kind not in (_TABLE_LEAF, _INDEX_LEAF):
            return [], [], False
        cells = int.from_bytes(page[at + 3 : at + 5], "big")
        first = at + (12 if inside else 8)
        children = [int.from_bytes(page[at + 8 : at + 12], "big")] if inside else []
        rows: list[tuple[int | None, Row]] = []
        intact = first + 2 * cells <= self.page_bytes
        for i in range(min(cells, (self.page_bytes - first) // 2)):
            cell = int.from_bytes(page[first + 2 * i : first + 2 * i + 2], "big")
            try:
                if inside:
                    children.append(int.from_bytes(page[cell : cell + 4], "big"))
                    cell += 4
                if kind != _TABLE_INSIDE:
                    rows.append(self._cell(page, cell, is_table=kind == _TABLE_LEAF))
            except (_Damaged, IndexError, UnicodeDecodeError):
                intact = False
        return rows, children, intact

    def _cell(self, page: bytes, at: int, *, is_table: bool) -> tuple[int | None, Row]:
        length, at = _varint(page, at)
        rowid: int | None = None
        if is_table:
            rowid, at = _varint(page, at)
            rowid = rowid - (1 << 64) if rowid >= 1 << 63 else rowid
        if length > _PAYLOAD_MAX:
            raise _Damaged
        return rowid, _record(self._payload(page, at, length, is_table=is_table))

    def _payload(self, page: bytes, at: int, length: int, *, is_table: bool) -> bytes:
        """Return a payload, with what of it lies on overflow pages."""
        usable = self._usable
        most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
        local = length
        if length > most:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (length - least) % (usable - 4)
            local = local if local <= most else least
        payload = page[at : at + local]
        if local < length:
            following, seen = int.from_bytes(page[at + local : at + local + 4], "big"), set[int]()
            while len(payload) < length and following not in seen:
                seen.add(following)
                self._seen.add(following)
                more = self._raw(following)
                payload += more[4:usable][: length - len(payload)]
                following = int.from_bytes(more[:4], "big")
        if len(payload) != length:
            raise _Damaged
        return payload


def _record(payload: bytes) -> Row:
    header, at = _varint(payload, 0)
    if header > len(payload):
        raise _Damaged
    kinds = []
    while at < header:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    at, values = header, list[Value]()
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise _Damaged
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in _INTEGERS:
        end = at + _INTEGERS[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind < 12:
        raise _Damaged  # a float, which no column of ours holds, or nothing that there is
    end = at + (kind - 12) // 2
    data = payload[at:end]
    return (data.decode() if kind % 2 else data), end


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        byte = buffer[at + i]
        if i == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    raise _Damaged
