"""Mend the tree: what lost its inode, its name or its directory."""

from __future__ import annotations

import stat
from typing import Any

from nexus_engine.check.naming import entry_name, inode_name
from nexus_engine.meta import check_log_queries, check_queries, repair_queries
from nexus_engine.meta.check_queries import WrongInode
from nexus_engine.permissions import acl
from nexus_engine.repair.mending import Mending, Step
from nexus_engine.types import ROOT_INO, Ino, Inode, Seq

_TYPES = frozenset((0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000))


# -- inodes --


def root(mending: Mending) -> None:
    found = mending.tx.find_inode(ROOT_INO)
    if found is None:
        revive(mending, ROOT_INO, stat.S_IFDIR | 0o755)
    elif not found.is_dir:
        mode = stat.S_IFDIR | stat.S_IMODE(found.mode)
        repair_queries.set_fields(
            mending.connection, ROOT_INO, None, {"mode": mode, "target": None}
        )
    else:
        return
    mending.inode("root-missing", ROOT_INO, "is a directory again")


def revive(mending: Mending, ino: int, mode: int) -> Inode:
    """Make an inode from what is still known: past versions, the log, names, extents.

    Args:
        mode: What it is, as far as its names tell; holds where nothing better is known.
    """
    inode, since = _known(mending, ino, mode)
    repair_queries.add_inode(mending.connection, inode._replace(from_seq=since))
    return inode


def _known(mending: Mending, ino: int, mode: int) -> tuple[Inode, Seq]:
    """Return an inode as far as it is known, and since when it is to be true."""
    tx, connection = mending.tx, mending.connection
    last = repair_queries.last_version(connection, ino)
    if last is not None:
        inode, since = last
    else:
        made = repair_queries.origin(connection, ino)
        if made is not None:
            mode = made.mode
        uid, gid = (tx.actor.uid, tx.actor.gid) if made is None else (made.uid, made.gid)
        time_ns = tx.now_ns if made is None else made.time_ns
        times = (time_ns, time_ns, time_ns, time_ns)
        head = check_log_queries.log_end(connection)
        periods = repair_queries.name_periods(connection, ino, head + 1)
        since = Seq(min([head, *(begin for begin, _ in periods)]) or head)
        inode = Inode(Ino(ino), since, mode, uid, gid, 1, 0, 0, *times, since, None)
    if stat.S_IFMT(inode.mode) not in _TYPES:
        inode = inode._replace(mode=stat.S_IFREG | stat.S_IMODE(inode.mode))
    if inode.is_file:
        size = repair_queries.logged_size(connection, ino)
        end = repair_queries.content_end(connection, ino)
        inode = inode._replace(size=max(end, size or 0), content_seq=since)
    elif inode.is_symlink and inode.target is None:
        inode = inode._replace(mode=stat.S_IFREG | 0o600, size=0)
    names = len(tx.dentries_of(Ino(ino)))
    return inode._replace(nlink=2 if inode.is_dir else max(1, names)), since


def inodes(mending: Mending) -> None:
    for wrong in list(check_queries.wrong_inodes(mending.connection)):
        repair_queries.set_fields(
            mending.connection, wrong.ino, wrong.to_seq, _right_fields(mending, wrong)
        )
        mending.inode("inode-fields", wrong.ino, "is what its names and its content say")


def _right_fields(mending: Mending, wrong: WrongInode) -> dict[str, Any]:
    connection = mending.connection
    kind, bits = stat.S_IFMT(wrong.mode), stat.S_IMODE(wrong.mode)
    if kind not in _TYPES or stat.S_ISLNK(wrong.mode) != (wrong.target is not None):
        kind = repair_queries.known_kind(connection, wrong.ino) or stat.S_IFREG
    target = wrong.target
    if stat.S_ISLNK(kind):
        target = target or repair_queries.known_target(connection, wrong.ino)
        if target is None:
            kind = stat.S_IFREG  # an empty file: that something was there is all that is left
    else:
        target = None
    size = max(wrong.size, 0)
    if target is not None:
        size = len(target)
    elif wrong.size < 0 or stat.S_ISLNK(wrong.mode):
        is_current_file = wrong.to_seq is None and stat.S_ISREG(kind)
        size = repair_queries.content_end(connection, wrong.ino) if is_current_file else 0
    return {"mode": kind | bits, "target": target, "size": size, "nlink": max(wrong.nlink, 0)}


# -- names --


def names(mending: Mending) -> None:
    """Have names be where lookups find them, and possible."""
    tx, connection = mending.tx, mending.connection
    found = list(check_queries.misplaced_dentries(connection))
    if any(table == "dentry" for table, *_ in found):
        mending.find_place()
    for table, parent, digest, name in found:
        where = entry_name(connection, parent, name)
        possible = check_queries.is_name(name)
        if possible and repair_queries.refile(connection, table, parent, digest, name, name):
            mending.entry("dentry-name", parent, name, "is found again")
            continue
        if table == "dentry_past":
            new = b"#%d" % digest
            if not repair_queries.refile(connection, table, parent, digest, name, new):
                repair_queries.remove_name(connection, table, parent, digest, name)
            mending.say("dentry-name", where, f"was called {new.decode()}")
            continue
        ino = repair_queries.remove_name(connection, table, parent, digest, name)
        inode = None if ino is None else tx.find_inode(ino)
        if inode is not None:
            path = mending.put_aside(inode)
            mending.say("dentry-name", where, f"is {path}")
        else:
            mending.say("dentry-name", where, "is gone; it led to nothing")


def dangling(mending: Mending) -> None:
    connection = mending.connection
    for parent, name, ino, kind, mode in list(check_queries.dangling_dentries(connection)):
        if mode is None:
            if mending.tx.find_inode(Ino(ino)) is None:
                revive(mending, ino, stat.S_IFMT(kind) | (0o700 if kind == 0o040000 else 0o600))
            action = "its inode is made anew, from what is known of it"
            mending.entry("dentry-dangling", parent, name, action, ino)
        else:
            repair_queries.set_kind(connection, parent, name, stat.S_IFMT(mode))
            mending.entry("dentry-kind", parent, name, "has the type of its inode", ino)


def past_dangling(mending: Mending) -> None:
    """Former names of what nothing is known of: it was there, as far as the log tells."""
    connection = mending.connection
    for _, _, ino, _ in list(check_queries.past_dentries_of_nothing(connection)):
        head = check_log_queries.log_end(connection)
        line = repair_queries.timeline(connection, check_queries.INTERVALS[0], (ino,))
        if line.past or line.current is not None:
            continue  # versions are stretched
        kind = repair_queries.known_kind(connection, ino) or stat.S_IFREG
        inode, since = _known(mending, ino, kind | 0o600)
        until = max(end for _, end in repair_queries.name_periods(connection, ino, head + 1))
        repair_queries.add_inode(connection, inode._replace(from_seq=since), Seq(until))
        mending.inode("dentry-past-dangling", ino, "is known again, as the log tells of it")


def homeless(mending: Mending) -> None:
    tx, connection = mending.tx, mending.connection
    found = list(check_queries.homeless_dentries(connection))
    if any(tx.find_inode(Ino(parent)) is not None for parent, _ in found):
        mending.find_place()
    for parent, name in found:
        where = entry_name(connection, parent, name)
        directory = tx.find_inode(Ino(parent))
        if directory is None:
            revive(mending, parent, stat.S_IFDIR | 0o700)
            mending.inode("dentry-homeless", parent, f"is made anew, with {where} in it")
        elif not directory.is_dir:
            dentry = tx.find_dentry(Ino(parent), name)  # type: ignore[arg-type]
            inode = None if dentry is None else tx.find_inode(dentry.ino)
            mending.drop_name(parent, name)
            path = "gone; it led to nothing" if inode is None else mending.put_aside(inode)
            mending.say("dentry-homeless", where, f"is {path}")


def nameless(mending: Mending) -> None:
    """What has no name gets one in lost+found; what has too many keeps the oldest."""
    tx, connection = mending.tx, mending.connection
    files = [f for f in check_queries.wrong_file_links(connection) if f[2] == 0]
    directories = [
        d for d in check_queries.wrong_directory_links(connection) if d[2] != (d[0] != ROOT_INO)
    ]
    if files or any(names == 0 for _, _, names, _ in directories):
        mending.find_place()
    for ino, _, _ in files:
        _put_nameless_aside(mending, "file-links", ino)
    for ino, _, count, _ in directories:
        if count == 0:
            _put_nameless_aside(mending, "directory-names", ino)
            continue
        for extra in tx.dentries_of(Ino(ino))[0 if ino == ROOT_INO else 1 :]:
            mending.drop_name(extra.parent, extra.name)
            mending.entry("directory-names", extra.parent, extra.name, "is gone: one too many")


def _put_nameless_aside(mending: Mending, code: str, ino: int) -> None:
    where = inode_name(mending.connection, ino)
    path = mending.put_aside(mending.tx.get_inode(Ino(ino)))
    mending.say(code, where, f"lost its name; it is {path}")


def cycles(mending: Mending) -> None:
    """Directories that lie in each other: one of them moves to lost+found."""
    tx, connection = mending.tx, mending.connection
    found = [Ino(ino) for (ino,) in check_queries.unreachable_directories(connection)]
    if not found:
        return
    place, handled = mending.find_place(), set[Ino]()
    for ino in found:
        way: list[Ino] = []
        while ino not in (ROOT_INO, place) and ino not in handled and ino not in way:
            way.append(ino)
            dentries = tx.dentries_of(ino)
            if not dentries:
                break
            ino = dentries[0].parent
        if ino in way and tx.dentries_of(ino):
            (dentry, *_) = tx.dentries_of(ino)
            mending.drop_name(dentry.parent, dentry.name)
            path = mending.put_aside(tx.get_inode(ino))
            mending.inode("directory-unreachable", ino, f"lay within itself; it is {path}")
        handled.update(way)


def links(mending: Mending) -> None:
    connection = mending.connection
    for ino, _, count in list(check_queries.wrong_file_links(connection)):
        if count:
            repair_queries.set_fields(connection, ino, None, {"nlink": count})
            mending.inode("file-links", ino, f"counts {count} links, as it has names")
    for ino, nlink, _, below in list(check_queries.wrong_directory_links(connection)):
        if nlink != 2 + below:
            repair_queries.set_fields(connection, ino, None, {"nlink": 2 + below})
            mending.inode("directory-links", ino, f"counts {2 + below} links, as is in it")


def acls(mending: Mending) -> None:
    tx = mending.tx
    for name in acl.NAMES:
        for ino, mode, value in list(check_queries.acls(mending.connection, name)):
            found = acl.Acl.find_valid(value)
            if found is None:
                tx.remove_xattr(Ino(ino), name)
                mending.inode("acl", ino, f"{name.decode()} is gone: it could not be read")
            elif name == acl.ACCESS and found.permission_bits != mode & 0o777:
                tx.put_xattr(Ino(ino), name, found.with_bits(mode).encode())
                mending.inode("acl-mode", ino, f"its ACL grants what its mode {mode:o} says")


STEPS = (
    Step(frozenset({"root-missing"}), root),
    Step(frozenset({"inode-fields"}), inodes),
    Step(frozenset({"dentry-name"}), names),
    Step(frozenset({"dentry-dangling", "dentry-kind"}), dangling),
    Step(frozenset({"dentry-past-dangling"}), past_dangling),
    Step(frozenset({"dentry-homeless"}), homeless),
    Step(frozenset({"file-links", "directory-names"}), nameless),
    Step(frozenset({"directory-unreachable"}), cycles),
    Step(frozenset({"file-links", "directory-links"}), links),
    Step(frozenset({"acl", "acl-mode"}), acls),
)
