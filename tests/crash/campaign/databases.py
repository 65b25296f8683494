"""SQLite databases on the mount: made by writers, judged after a crash."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.crash.campaign.steps import Notes


def make_database(path: str, journal: str) -> sqlite3.Connection:
    """Return a connection to a new database that commits durably.

    Source: https://sqlite.org/pragma.html#pragma_synchronous: FULL is what makes a commit in WAL
    mode durable; NORMAL promises consistency alone.
    """
    connection = sqlite3.connect(path, timeout=30)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 20")
    connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, payload BLOB)")
    connection.commit()
    return connection


def payload_of(number: int) -> bytes:
    rng = random.Random(number)
    return rng.randbytes(rng.choice((20, 500, 9000)))


def judge_database(directory: Path, notes: Notes) -> list[str]:
    """Return what is wrong with a database: a commit that is missing, one that is half there."""
    path = directory / "db"
    promised = notes.done[-1][1] if notes.done else 0
    if not path.exists():
        return [f"{path} is gone"] if promised else []
    begun = notes.in_flight[1] if notes.in_flight else promised
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            return [f"{path}: {verdict}"]
        if not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            return [f"{path} is empty"] if promised else []
        rows = connection.execute("SELECT id, payload FROM entry ORDER BY id").fetchall()
    if len(rows) not in (promised, begun):
        return [f"{path} holds {len(rows)} rows; {promised} promised, {begun} begun"]
    if any(row != (number, payload_of(number)) for number, row in enumerate(rows, start=1)):
        return [f"{path} holds rows that nobody wrote"]
    return []
