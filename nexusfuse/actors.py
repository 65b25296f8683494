"""Who makes a request: from the kernel's (uid, gid, tid) to an ``Actor``."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

import pyfuse3

from nexus_engine.types import Actor, agent_name

AGENT_VARIABLE = b"NEXUS_AGENT="
CACHE_MAX = 256
"""Processes remembered; each holds a descriptor."""
DEPTH_MAX = 64
_STAT_BYTES = 1024
_ENVIRON_BYTES = 1 << 20


class _Stat(NamedTuple):
    """What tells one process image from another (proc_pid_stat(5))."""

    command: bytes
    parent: bytes
    session: bytes
    start_ticks: bytes
    start_code: bytes
    start_stack: bytes


class _Known(NamedTuple):
    fd: int
    stat: _Stat
    actor: Actor


class ActorResolver:
    """Resolves callers; remembers each process image until it is replaced.

    A shell's child opens files before and after ``execve``, under one pid and start time but with
    another environment. So each request reads the process's ``stat`` again: the addresses of code
    and stack are random per execve and tell the images apart. A descriptor kept open makes that a
    single call and cannot come to mean another process.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, _Known] = OrderedDict()

    def resolve(self, ctx: pyfuse3.RequestContext) -> Actor:
        """Return who calls, as far as /proc tells."""
        tid = ctx.pid
        known = self._known.get(tid)
        if known is not None:
            stat = _read_stat(known.fd)
            if stat == known.stat and (ctx.uid, ctx.gid) == known.actor[:2]:
                self._known.move_to_end(tid)
                return known.actor
            self._forget(tid)
        return self._learn(tid, ctx.uid, ctx.gid)

    def close(self) -> None:
        for tid in list(self._known):
            self._forget(tid)

    def _forget(self, tid: int) -> None:
        os.close(self._known.pop(tid).fd)

    def _learn(self, tid: int, uid: int, gid: int) -> Actor:
        # That of the thread: for /proc/TID/stat the kernel sums up all threads of the process.
        path = b"/proc/%d/task/%d/stat" % (tid, tid)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return Actor(uid, gid, tid)  # gone already, or in another pid namespace
        stat = _read_stat(fd)
        if stat is None:
            os.close(fd)
            return Actor(uid, gid, tid)
        pid, start_ticks = _process_of(tid, stat)
        actor = Actor(
            uid=uid,
            gid=gid,
            pid=pid,
            start_ticks=start_ticks,
            command=stat.command.decode(errors="replace"),
            session=int(stat.session),
            agent=_find_agent(tid, stat),
        )
        self._known[tid] = _Known(fd, stat, actor)
        if len(self._known) > CACHE_MAX:
            self._forget(next(iter(self._known)))
        return actor


def groups_of(tid: int) -> frozenset[int]:
    """Return the supplementary groups of a caller; none where it cannot be looked at."""
    try:
        return frozenset(pyfuse3.get_sup_groups(tid))
    except (OSError, RuntimeError):
        return frozenset()


def _read_stat(fd: int) -> _Stat | None:
    try:
        line = os.pread(fd, _STAT_BYTES, 0)
    except OSError:
        return None  # ESRCH: the process is gone
    head, _, tail = line.rpartition(b")")
    fields = tail.split(maxsplit=26)
    if len(fields) < 26:
        return None
    command = head.partition(b"(")[2]
    return _Stat(command, fields[1], fields[3], fields[19], fields[23], fields[25])


def _process_of(tid: int, stat: _Stat) -> tuple[int, int]:
    """Return the process of a thread, and the process's start time."""
    try:
        with open(b"/proc/%d/status" % tid, "rb") as file:  # noqa: PTH123 - a proc path in bytes
            tgid = next(int(line[5:]) for line in file if line.startswith(b"Tgid:"))
        if tgid != tid:
            with open(b"/proc/%d/stat" % tgid, "rb") as file:  # noqa: PTH123
                leader = _read_stat(file.fileno())
            if leader is not None:
                return tgid, int(leader.start_ticks)
        return tgid, int(stat.start_ticks)
    except (OSError, StopIteration, ValueError):
        return tid, int(stat.start_ticks)


def _find_agent(pid: int, stat: _Stat) -> str:
    """Return NEXUS_AGENT of the process or of its nearest ancestor that has one."""
    for _ in range(DEPTH_MAX):
        agent = _own_agent(pid)
        if agent:
            return agent
        pid = int(stat.parent)
        if pid <= 1:
            return ""
        try:
            with open(b"/proc/%d/stat" % pid, "rb") as file:  # noqa: PTH123
                parent = _read_stat(file.fileno())
        except OSError:
            return ""
        if parent is None:
            return ""
        stat = parent
    return ""


def _own_agent(pid: int) -> str:
    try:
        with open(b"/proc/%d/environ" % pid, "rb") as file:  # noqa: PTH123
            environ = file.read(_ENVIRON_BYTES)
    except OSError:
        return ""
    for entry in environ.split(b"\0"):
        if entry.startswith(AGENT_VARIABLE):
            return agent_name(entry[len(AGENT_VARIABLE) :])
    return ""
