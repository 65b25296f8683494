"""Which processes have a store open, and which of them died.

Each holds an ``flock`` on a file of its own in ``STORE/peers``: the kernel lets go of it when the
process ends, however it ends. Whoever gets the lock of another has proof that its holder is gone,
and keeps others from taking over at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from nexus_engine.backends.files import lock_within, translate
from nexus_engine.errors import EngineError

_SUFFIX = ".lock"
_SEQ_DIGITS = 20
_WRITING = b"w"
_WORD_AT = _SEQ_DIGITS + len(_WRITING)
_WORD_MAX = 4096 - _WORD_AT
LISTENER = ".listener"
"""What the name of an owner's socket ends in."""
JOURNAL = ".journal"
_EXITING = 0x4  # PF_EXITING, proc_pid_stat(5) field 9
_SIGKILL_BIT = 1 << 8
DYING_LIMIT_S = 5.0


class OwnerLock:
    """A held lock: one's own, or that of a process that is gone."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.owner = path.name.removesuffix(_SUFFIX)

    def note_synced(self, seq: int) -> None:
        """Leave word of how far the log is surely on the disk, with the chunks that it names.

        The file is not synced itself: an older number is as true.
        """
        try:
            if os.pwrite(self._fd, b"%020d" % seq, 0) < _SEQ_DIGITS:
                os.ftruncate(self._fd, 0)  # half a number could claim too much; none claims nothing
        except OSError as error:
            if error.errno != errno.ENOSPC:  # so full that nothing can be overwritten
                raise translate(error, f"write {self._path}") from error

    def note_writing(self) -> None:
        """Leave word that this owner stores content, and answers gc.

        Raises:
            NoSpace, StoreInaccessible, ObjectStoreFailed.
        """
        try:
            os.pwrite(self._fd, _WRITING, _SEQ_DIGITS)
        except OSError as error:
            raise translate(error, f"write {self._path}") from error

    def synced(self) -> int:
        """Return what this owner noted last; 0 if nothing."""
        return _synced(os.pread(self._fd, _SEQ_DIGITS, 0))

    def release(self) -> None:
        """Let go; nothing of this owner needs to be taken over any more."""
        # A file that stays is that of a dead process with nothing left to do.
        with contextlib.suppress(OSError):
            self._path.with_suffix(LISTENER).unlink(missing_ok=True)
            self._path.with_suffix(JOURNAL).unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def abandon(self, word: str = "") -> None:
        """Let go as a process does that dies: the next one takes over.

        Args:
            word: What it has to do, for people. Kept where there is room for it.
        """
        # Within the block that the file has: on a full disk there is no other.
        text = word.encode(errors="backslashreplace")[:_WORD_MAX]
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, text, _WORD_AT)
        os.close(self._fd)


def claim(peers: Path) -> OwnerLock:
    """Become an owner.

    Raises:
        NoSpace, StoreInaccessible, ObjectStoreFailed.
    """
    try:
        return _claim(peers)
    except OSError as error:
        raise translate(error, f"use {peers}") from error


def _claim(peers: Path) -> OwnerLock:
    peers.mkdir(mode=0o700, exist_ok=True)
    if peers.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "a symbolic link")
    while True:
        path = peers / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the two somebody may have found the file unlocked and cleared it away.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(fd)):
            lock = OwnerLock(path, fd)
            try:
                lock.note_synced(0)  # takes its room on the disk now
            except EngineError:
                lock.release()  # or this process would hold what nobody leaves or takes over
                raise
            return lock
        os.close(fd)


def owners(peers: Path) -> list[str]:
    """Return every owner that did not take leave."""
    return [path.name.removesuffix(_SUFFIX) for path in peers.glob(f"*{_SUFFIX}")]


def is_alone(peers: Path) -> bool:
    """Tell whether there is one owner."""
    return sum(name.endswith(_SUFFIX) for name in os.listdir(peers)) == 1  # noqa: PTH208 - hot


def synced_by_others(peers: Path, owner: str) -> int | None:
    """Return up to which operation the disk has what other owners stored, by what they noted last.

    ``None``: there is no other, and whoever took leave had synced everything.
    """
    noted = []
    for other in owners(peers):
        if other != owner:
            with contextlib.suppress(FileNotFoundError):  # it has just taken leave
                noted.append(_synced((peers / f"{other}{_SUFFIX}").read_bytes()[:_SEQ_DIGITS]))
    return min(noted, default=None)


def _synced(text: bytes) -> int:
    return int(text) if text.isdigit() else 0


def living(peers: Path) -> Iterator[str]:
    """Yield every owner whose process lives, and is not just being killed."""
    for owner in owners(peers):
        lock = take_over(peers, owner)
        if lock is None:
            yield owner
        else:
            lock.abandon()


def writers(peers: Path) -> list[str]:
    """Return every owner that stores content, or did before it died."""
    found = []
    for owner in owners(peers):
        try:
            text = (peers / f"{owner}{_SUFFIX}").read_bytes()
        except FileNotFoundError:
            continue  # it has just taken leave
        if text[_SEQ_DIGITS:_WORD_AT] == _WRITING:
            found.append(owner)
    return found


def last_word(peers: Path, pid: int) -> str | None:
    """Return what a process that is gone left to the next one to do, for people.

    ``None`` if it took leave: there is nothing to do.
    """
    for path in peers.glob(f"{pid}-*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # it has just been taken over
            word = path.read_bytes()[_WORD_AT:].decode(errors="backslashreplace")
            return word or "its daemon died; the next mount finishes what close had returned for"
    return None


def describe(owner: str) -> str:
    """Return a process for people: its number, and what it is called."""
    pid = owner.split("-")[0]
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"


def take_over(peers: Path, owner: str) -> OwnerLock | None:
    """Return the lock of an owner that is gone, ``None`` for one that lives.

    Waits for a process that was killed and is not quite gone.

    Raises:
        NoSpace, StoreInaccessible, ObjectStoreFailed.
    """
    path = peers / f"{owner}{_SUFFIX}"
    try:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise translate(error, f"use {path}") from error
    deadline_s = time.monotonic() + DYING_LIMIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _is_dying(int(owner.split("-")[0])) or time.monotonic() > deadline_s:
                os.close(fd)
                return None
            time.sleep(0.005)
        else:
            return OwnerLock(path, fd)


@contextlib.contextmanager
def one_recovery(peers: Path) -> Iterator[bool]:
    """Keep others from taking over meanwhile; yields whether this one may: no other is at it.

    Waits a moment for one that was killed while it was.
    """
    try:
        fd = os.open(peers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translate(error, f"use {peers}") from error
    try:
        yield lock_within(fd, DYING_LIMIT_S)
    finally:
        os.close(fd)


def _is_dying(pid: int) -> bool:
    """Tell whether a process has been killed but still holds what it had open."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    if stat[0] in (b"Z", b"X") or int(stat[6]) & _EXITING:
        return True
    pending = [line.split()[1] for line in status.splitlines() if line[:6] in ("SigPnd", "ShdPnd")]
    return any(int(mask, 16) & _SIGKILL_BIT for mask in pending)
