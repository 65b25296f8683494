"""The usual troubles of a store: of its disk, its database, its log, and who has it open."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nexus_engine import errors
from nexus_engine.clock import SystemClock
from nexus_engine.meta import schema
from nexus_engine.meta.connection import DATABASE_NAME, Connection
from nexus_engine.meta.database import Database
from nexus_engine.oplog.reader import get_entry
from nexus_engine.owners import owners
from nexusfuse.ctl import disks
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.render import size
from nexusfuse.ctl.troubles import ERROR, WARNING, Finding

SPACE_MIN_BYTES = 256 << 20
SPACE_LOW_SHARE = 0.05
SPACE_LOW_BYTES = 5 << 30
"""A disk of which less than both is free is nearly full."""
INODES_MIN = 1000
CLOCK_SLACK_S = 60.0
WAL_LARGE_BYTES = 256 << 20
LOG_AGE_S = 86400.0
_LOG_READ_BYTES = 4 << 20
_NETWORK = frozenset(
    "9p afs ceph cifs glusterfs gfs2 lustre ncpfs nfs nfs4 ocfs2 smb3 smbfs virtiofs".split()
)
_VOLATILE = frozenset(("tmpfs", "ramfs", "overlay"))
_LOG_LINE = re.compile(r'time=(\S+)Z level=(ERROR|CRITICAL) \S+ message="(.*)"')


def check_disk(store: Path, limit_s: float) -> Iterator[Finding]:
    """Whether the disk answers."""
    if not disks.answer(store, limit_s):
        yield Finding(
            ERROR,
            "disk",
            f"the disk of {store} did not answer within {limit_s:g} s",
            "what is not in memory fails, after a while, and nothing new can be kept; it goes on by"
            " itself when the disk answers",
            "dmesg | tail -20",
        )


def check_owner(store: Path, *, uid: int) -> Iterator[Finding]:
    """Whether who asks may use the store."""
    try:
        owner = store.stat().st_uid
    except OSError:
        return  # check_database says why
    if uid not in (0, owner):
        yield Finding(
            ERROR,
            "owner",
            f"{store} belongs to user {owner}, and you are {uid}",
            "only its owner and root can mount it or look into it",
            f"chown -R {uid} {shlex.quote(str(store))}",
        )


def check_filesystem(store: Path, mount: Mount) -> Iterator[Finding]:
    """Whether the file system that a store lies on keeps its promises.

    Args:
        mount: The one that the store lies in.
    """
    fstype = os.fsdecode(mount.fstype)
    move = f"cp -a {shlex.quote(str(store))} /A/LOCAL/DISK/"
    if fstype in _NETWORK or fstype.startswith("fuse"):
        yield Finding(
            ERROR,
            "filesystem",
            f"{store} lies on {fstype}, which is not a local disk",
            "SQLite's write-ahead log and the locks between processes do not hold there: the store"
            " can be damaged",
            move,
        )
    elif fstype in _VOLATILE:
        why = "it is gone when the machine stops"
        if fstype == "overlay":
            why = "it is gone when the container is removed"
        yield Finding(WARNING, "filesystem", f"{store} lies on {fstype}", why, move)


def check_space(store: Path, disk: os.statvfs_result) -> Iterator[Finding]:
    """Whether there is room for what is written next."""
    find = f"du -xh --max-depth=2 {shlex.quote(str(store.parent))} | sort -h | tail"
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if free < SPACE_MIN_BYTES:
        why = "programs get “No space left on device”; nothing that is there is lost"
        yield Finding(ERROR, "space", f"{size(free)} left on the disk of {store}", why, find)
    elif free < min(total * SPACE_LOW_SHARE, SPACE_LOW_BYTES):
        why = "history grows with every change; when the disk is full, programs get errors"
        yield Finding(WARNING, "space", f"{size(free)} left on the disk of {store}", why, find)
    if disk.f_files and disk.f_favail < INODES_MIN:  # btrfs has no such number
        why = "each process that opens the store, and each new pack, needs some"
        what = f"{disk.f_favail} inodes left on the disk of {store}"
        yield Finding(ERROR, "inodes", what, why, find.replace("du -x", "du -x --inodes "))


def check_database(store: Path, *, now_ns: int) -> Iterator[Finding]:
    """Whether the store can be opened, is of this version, and its log not of the future."""
    quoted = shlex.quote(str(store))
    try:
        (store / DATABASE_NAME).stat()
        connection = Connection(str(store / DATABASE_NAME))
    except FileNotFoundError:
        why = "nexus-ctl mount makes one; a disk that is not mounted looks like this as well"
        yield Finding(ERROR, "no-store", f"there is no store at {store}", why, f"ls -la {quoted}")
        return
    except (errors.EngineError, OSError) as error:
        yield Finding(
            ERROR, "unreadable", f"{store} cannot be opened: {error}", "nothing can be mounted from"
            " it", f"ls -la {quoted}",
        )  # fmt: skip
        return
    try:
        yield from _check_content(store, connection, now_ns)
    except errors.EngineError as error:
        why = "the metadata is damaged"
        command = f"nexus-ctl --store {quoted} fsck"
        yield Finding(ERROR, "unreadable", f"{store} cannot be read: {error}", why, command)
    finally:
        connection.close()


def _check_content(store: Path, connection: Connection, now_ns: int) -> Iterator[Finding]:
    (application,) = connection.one("PRAGMA application_id") or (0,)
    (version,) = connection.one("PRAGMA user_version") or (0,)
    if application != schema.APPLICATION_ID:
        what = f"{store / DATABASE_NAME} is no Nexus database"
        yield Finding(ERROR, "unreadable", what, "restore it from a backup", "")
        return
    if version > schema.VERSION:
        yield Finding(
            ERROR,
            "newer-store",
            f"{store} has format {version}, this Nexus knows up to {schema.VERSION}",
            "a newer version wrote it; this one would not understand it",
            "pip install --upgrade nexusfs",
        )
        return
    if version < schema.VERSION:
        return  # its next mount brings it up to date
    database = Database(connection, SystemClock())
    head = database.reader.head()
    ahead_s = (get_entry(database, head).record.time_ns - now_ns) / 1e9 if head else 0.0
    if ahead_s > CLOCK_SLACK_S:
        yield Finding(
            WARNING,
            "clock",
            f"the newest operation of {store} is {ahead_s:.0f} s in the future",
            "the clock was set back, or was wrong then; until that time is reached, every operation"
            " gets the same time, and moments such as 5m show less than they should",
            "timedatectl status",
        )


def check_owners(peers: Path) -> Iterator[Finding]:
    """Whether processes that died left something that nobody took over."""
    dead = [owner for owner in _owners(peers) if _is_free(peers / f"{owner}.lock")]
    if dead:
        pids = ", ".join(sorted(owner.split("-")[0] for owner in dead))
        yield Finding(
            WARNING,
            "dead-owners",
            f"{_count(dead, 'process', 'processes')} died with {peers.parent} open ({pids})",
            "what they had accepted and not entered into the log is not to be seen yet; the next"
            " mount or command finishes it",
            f"nexus-ctl --store {shlex.quote(str(peers.parent))} status",
        )


def _owners(peers: Path) -> list[str]:
    try:
        return owners(peers)
    except OSError:
        return []


def _is_free(lock: Path) -> bool:
    """Tell whether nobody holds a lock; for an instant, others that try see it held."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def check_wal(store: Path) -> Iterator[Finding]:
    """Whether SQLite's write-ahead log is emptied now and then."""
    try:
        length = (store / f"{DATABASE_NAME}-wal").stat().st_size
    except OSError:
        return
    if length > WAL_LARGE_BYTES:
        yield Finding(
            WARNING,
            "wal",
            f"the write-ahead log of {store} has {size(length)}",
            "some process reads without end, or the daemon was killed again and again; reads are"
            " slow as long as it is so large",
            f"nexus-ctl --store {shlex.quote(str(store))} stats",
        )


def check_log(log: Path, *, now_s: float) -> Iterator[Finding]:
    """Whether the daemon complained during the last day."""
    found = []
    for line in _last_lines(log):
        match = _LOG_LINE.match(line)
        if match is not None:
            when = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
            if now_s - when <= LOG_AGE_S:
                found.append(match[3])
    if found:
        yield Finding(
            WARNING,
            "log",
            f"{log} has {_count(found, 'error')} of the last day, the last one: {found[-1]}",
            "something that programs asked for was not done, or not yet",
            f"grep -e level=ERROR -e level=CRITICAL {shlex.quote(str(log))} | tail -20",
        )


def _count(found: list[str], one: str, more: str = "") -> str:
    return f"{len(found)} {one if len(found) == 1 else more or one + 's'}"


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_READ_BYTES))
            return file.read().decode(errors="backslashreplace").splitlines()
    except OSError:
        return []
