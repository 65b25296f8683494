"""SQLite in every way it keeps its journal, and PostgreSQL."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.mount.waiting import wait_until
from tests.programs.programs import as_root, identity, join, latest, needs, run, start_python

MAPPED = 64 << 20
WRITERS, TRANSACTIONS = 3, 10
# The server of the newest version; Debian keeps it off the PATH.
PROGRAMS = max(Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin"), default=Path("/nonexistent"))

slow = pytest.mark.slow
JOURNALS = [
    "delete",
    pytest.param("truncate", marks=slow),
    pytest.param("persist", marks=slow),
    "wal",
]
WRITER = """
import sqlite3, sys
path, journal, mapped, writer, count = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"pragma mmap_size = {mapped}")
for step in range(int(count)):
    db.execute("begin immediate")
    (last,) = db.execute("select coalesce(max(number), 0) from entry").fetchone()
    text = f"{writer} {step} " * (step * 40)
    db.execute("insert into entry values (?, ?, ?)", (last + 1, writer, text))
    db.execute("update total set entries = entries + 1, bytes = bytes + ?", (len(text),))
    db.execute("commit")
db.close()
"""
INTERRUPTED = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma cache_size = 10")  # so that pages of the transaction are in the file already
db.execute("pragma cache_spill = 1")
db.execute("begin immediate")
db.execute("update entry set text = 'lost' || text")
db.executemany("insert into entry values (?, 'lost', ?)", ((-n, "x" * 999) for n in range(1, 2000)))
print("written", flush=True)
sys.stdin.read()
"""


def connect(path: Path, mapped: int = 0) -> closing[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute(f"pragma mmap_size = {mapped}")
    return closing(connection)


def create(path: Path, journal: str) -> None:
    with connect(path) as db:
        assert db.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
        db.execute("create table entry (number integer primary key, writer text, text text)")
        db.execute("create index entry_writer on entry (writer, number)")
        db.execute("create table total (entries integer, bytes integer)")
        db.execute("insert into total values (0, 0)")


def write(path: Path, journal: str, mapped: int = 0, writers: int = WRITERS) -> None:
    """Have several processes add entries at once."""
    steps = str(TRANSACTIONS)
    join(
        [
            start_python(WRITER, path, journal, str(mapped), str(number), steps, cwd=path.parent)
            for number in range(writers)
        ]
    )


def require_entries(path: Path, count: int, mapped: int = 0, *, uri: str = "") -> None:
    """The database is whole, and has each entry that was committed, once and in order."""
    with closing(sqlite3.connect(f"file:{path}?{uri}", uri=True)) as db:
        db.execute(f"pragma mmap_size = {mapped}")
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        total = db.execute("select count(*), coalesce(sum(length(text)), 0) from entry").fetchone()
        assert total == db.execute("select entries, bytes from total").fetchone()
        numbers = [number for (number,) in db.execute("select number from entry order by 1")]
        assert numbers == list(range(1, count + 1))


@pytest.mark.parametrize(
    ("journal", "mapped"),
    [
        ("delete", 0),
        pytest.param("delete", MAPPED, marks=slow),
        ("truncate", MAPPED),
        pytest.param("truncate", 0, marks=slow),
        ("persist", 0),
        pytest.param("persist", MAPPED, marks=slow),
        pytest.param("wal", 0, marks=slow),
        ("wal", MAPPED),
    ],
)
def test_processes_write_one_database_and_no_entry_is_lost(
    place: Path, shared_mount: Mount, journal: str, mapped: int
) -> None:
    """https://sqlite.org/lockingv3.html, wal.html, mmap.html; also after a remount."""
    path = place / "database"
    create(path, journal)
    write(path, journal, mapped)
    require_entries(path, WRITERS * TRANSACTIONS, mapped)
    shared_mount.remount()
    require_entries(path, WRITERS * TRANSACTIONS, mapped)
    write(path, journal, mapped, writers=1)
    require_entries(path, (WRITERS + 1) * TRANSACTIONS, mapped)


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_transaction_whose_process_was_killed_is_rolled_back(place: Path, journal: str) -> None:
    """https://sqlite.org/atomiccommit.html: a hot journal undoes what is in the file already."""
    path = place / "database"
    create(path, journal)
    write(path, journal, writers=1)
    process = start_python(INTERRUPTED, path, cwd=place)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert [entry for entry in place.iterdir() if entry != path], "a journal or a log is there"
    process.kill()
    process.communicate(timeout=60)
    require_entries(path, TRANSACTIONS)


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_database_at_a_moment_is_whole(place: Path, shared_mount: Mount, journal: str) -> None:
    """What was committed before the moment is in it, nothing that came later is."""
    path = place / "database"
    create(path, journal)
    moments = {}
    for round_ in range(1, 4):
        write(path, journal, writers=1)
        moments[latest(shared_mount)] = round_ * TRANSACTIONS
    with connect(path) as db:
        db.execute("delete from entry")
        db.execute("vacuum")
    for moment, count in moments.items():
        past = place / ".nexus/history" / moment / "database"
        require_entries(past, count, uri="mode=ro&immutable=1")
    assert shared_mount.check() == []


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_snapshot_of_an_open_database_has_all_that_was_committed(
    place: Path, shared_mount: Mount, journal: str
) -> None:
    """As after a power failure at that moment: journal and log of the copy are played back."""
    path = place / "database"
    create(path, journal)
    write(path, journal, writers=1)
    process = start_python(INTERRUPTED, path, cwd=place)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    name = f"open-{journal}"
    (place / ".nexus/snapshots" / name).mkdir()
    join([process])
    copy = place / "copy"
    shutil.copytree(place / ".nexus/history" / name, copy)
    require_entries(copy / "database", TRANSACTIONS)


def test_a_database_is_copied_and_dumped_whole(place: Path) -> None:
    """VACUUM INTO, the backup interface and a dump give the same entries."""
    path = place / "database"
    create(path, "wal")
    write(path, "wal", writers=1)
    with connect(path) as db:
        db.execute("vacuum into ?", (str(place / "vacuumed"),))
        with connect(place / "backup") as backup:
            db.backup(backup, pages=1)
        with connect(place / "dumped") as dumped:
            dumped.executescript("".join(db.iterdump()))
    for name in ("vacuumed", "backup", "dumped"):
        require_entries(place / name, TRANSACTIONS)


class Cluster:
    """A PostgreSQL server whose data is in a directory; run as the user postgres."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        directory.mkdir()
        shutil.chown(directory, "postgres", "postgres")
        self._directory = directory
        self._environment = {"PGHOST": str(directory), "PGDATABASE": "postgres"}
        self.run("initdb", "--no-locale", "-E", "UTF8", "-A", "trust", "-k", "-D", self._data)

    def run(self, program: str, *arguments: str | Path) -> str:
        return run(
            PROGRAMS / program,
            *arguments,
            cwd=self._directory,
            env=self._environment,
            user="postgres",
            timeout_s=300,
        )

    def sql(self, command: str) -> str:
        return self.run("psql", "-XAtqc", command).strip()

    def count_transactions(self) -> int:
        return int(self.sql("select count(*) from pgbench_history"))

    def start_bench(self) -> subprocess.Popen[bytes]:
        """Have transactions made until the server is gone."""
        bench: subprocess.Popen[bytes] = subprocess.Popen(
            [str(PROGRAMS / "pgbench"), "-n", "-c", "4", "-T", "60"],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **identity("postgres"),
        )
        return bench

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._directory}"
        log = self._directory / "log"
        self.run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "fast", "-D", self._data)

    def kill(self) -> None:
        """``kill -9`` the server and wait until none of its processes is left."""
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        children = run("ps", "-o", "pid=", "--ppid", str(pid), cwd=Path("/")).split()
        subprocess.run(["kill", f"-{signal.SIGKILL}", str(pid), *children], check=False)
        wait_until(
            lambda: not any(Path(f"/proc/{each}").exists() for each in (pid, *children)),
            "the death of the server",
        )

    def require_sound(self) -> None:
        """Every page has its checksum, every index its rows, and the bank's sums agree."""
        self.run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres")
        sums = ["accounts", "branches", "tellers"]
        balances = {
            self.sql(f"select sum({name[0]}balance) from pgbench_{name}") for name in sums
        } | {self.sql("select sum(delta) from pgbench_history")}
        assert len(balances) == 1, balances


@pytest.fixture
def cluster(open_mount: Mount) -> Iterator[Cluster]:
    cluster = Cluster(open_mount.path / "cluster")
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
@as_root
@needs(PROGRAMS / "pg_amcheck", "postgresql")
def test_postgresql_keeps_its_balances_over_kill_9_and_a_remount(
    open_mount: Mount, cluster: Cluster
) -> None:
    """pgbench(1), pg_amcheck(1), pg_checksums(1)."""
    cluster.run("pgbench", "-i", "-q", "-s", "5")
    moment = latest(open_mount)
    cluster.run("pgbench", "-n", "-c", "4", "-j", "2", "-T", "20")
    cluster.require_sound()

    count = cluster.count_transactions()
    with cluster.start_bench() as bench:
        wait_until(lambda: cluster.count_transactions() > count + 500, "work under way")
        cluster.kill()
        assert bench.wait(60) != 0
    cluster.start()
    assert cluster.count_transactions() > count + 500
    cluster.require_sound()

    cluster.run("psql", "-Xqc", "vacuum full")
    cluster.stop()
    cluster.run("pg_checksums", "--check", "-D", open_mount.path / "cluster/data")
    open_mount.umount()
    open_mount.mount("--allow-other")
    cluster.start()
    cluster.require_sound()
    assert (open_mount.path / ".nexus/history" / moment / "cluster/data/PG_VERSION").exists()
