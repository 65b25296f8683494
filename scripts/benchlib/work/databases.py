"""SQLite on the filesystem: what many programs keep their state in."""

from __future__ import annotations

import sqlite3

from benchlib.work.base import VerificationFailed, Workload


class SqliteRollback(Workload):
    name = "sqlite"
    does = "transactions of one row, rollback journal, synchronous=FULL"
    journal = "DELETE"

    @property
    def operations(self) -> int:
        return self.scale.syncs

    def prepare(self) -> None:
        self.path = self.directory / "test.db"
        self.database = sqlite3.connect(self.path, isolation_level=None)
        (mode,) = self.database.execute(f"PRAGMA journal_mode = {self.journal}").fetchone()
        if mode != self.journal.lower():
            raise VerificationFailed(f"{self.path}: SQLite could not use {self.journal}: {mode}")
        self.database.execute("PRAGMA synchronous = FULL")
        self.database.execute("CREATE TABLE entry (number INTEGER PRIMARY KEY, note TEXT)")

    def run(self) -> None:
        execute = self.database.execute
        for number in range(self.scale.syncs):
            execute("INSERT INTO entry VALUES (?, ?)", (number, "x" * 100))

    def verify(self) -> None:
        self.database.close()
        database = sqlite3.connect(self.path)
        (count,) = database.execute("SELECT count(*) FROM entry").fetchone()
        (said,) = database.execute("PRAGMA integrity_check").fetchone()
        database.close()
        if (count, said) != (self.scale.syncs, "ok"):
            raise VerificationFailed(f"{self.path}: {count} rows, {said}")


class SqliteWal(SqliteRollback):
    name = "sqlite-wal"
    does = "the same with a write-ahead log"
    journal = "WAL"
