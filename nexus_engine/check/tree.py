"""Invariants of the current tree: names, inodes, link counts."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine import errors
from nexus_engine.check.problems import RESTORE_BACKUP, Invariant, Problem, show
from nexus_engine.meta import check_queries
from nexus_engine.permissions import acl
from nexus_engine.store import Store


def root_exists(store: Store) -> Iterator[Problem]:
    if not check_queries.has_root(store.database.connection):
        yield Problem("root-missing", "inode 1", f"the root directory is missing: {RESTORE_BACKUP}")


def names_lead_to_inodes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name, ino, kind, mode in check_queries.dangling_dentries(connection):
        where = _name(parent, name)
        if mode is None:
            message = f"leads to inode {ino}, which does not exist: restore the path from history"
            yield Problem("dentry-dangling", where, message)
        else:
            message = f"says type {kind:o}, inode {ino} has mode {mode:o}: {RESTORE_BACKUP}"
            yield Problem("dentry-kind", where, message)


def names_are_in_directories(store: Store) -> Iterator[Problem]:
    for parent, name in check_queries.homeless_dentries(store.database.connection):
        message = f"inode {parent} is no directory: restore the path from history"
        yield Problem("dentry-homeless", _name(parent, name), message)


def names_can_be_found(store: Store) -> Iterator[Problem]:
    for parent, name in check_queries.misplaced_dentries(store.database.connection):
        message = f"is no valid name, or filed where no lookup finds it: {RESTORE_BACKUP}"
        yield Problem("dentry-name", _name(parent, name), message)


def files_have_their_links(store: Store) -> Iterator[Problem]:
    """An inode without names and links is an open file that was removed: nothing is wrong."""
    for ino, nlink, names in check_queries.wrong_file_links(store.database.connection):
        if names:
            message = f"counts {nlink} links but has {names} names: {RESTORE_BACKUP}"
        else:
            message = f"counts {nlink} links but has no name: restore it from history"
        yield Problem("file-links", f"inode {ino}", message)


def directories_have_their_links(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, nlink, names, below in check_queries.wrong_directory_links(connection):
        if nlink != 2 + below:
            message = f"counts {nlink} links but has {below} directories in it: {RESTORE_BACKUP}"
            yield Problem("directory-links", f"directory {ino}", message)
        if names != (0 if ino == 1 else 1):
            message = f"has {names} names: restore it from history"
            yield Problem("directory-names", f"directory {ino}", message)


def directories_can_be_reached(store: Store) -> Iterator[Problem]:
    for (ino,) in check_queries.unreachable_directories(store.database.connection):
        message = "cannot be reached from the root: restore it from history"
        yield Problem("directory-unreachable", f"directory {ino}", message)


def inodes_make_sense(store: Store) -> Iterator[Problem]:
    for table, ino, what in check_queries.wrong_inodes(store.database.connection):
        message = f"contradicts itself in {table} ({what}): {RESTORE_BACKUP}"
        yield Problem("inode-fields", f"inode {ino}", message)


def acls_make_sense(store: Store) -> Iterator[Problem]:
    for name in acl.NAMES:
        for ino, mode, value in check_queries.acls(store.database.connection, name):
            try:
                bits = acl.Acl.parse(value).permission_bits
            except errors.EngineError as error:
                message = f"{name.decode()}: {error}: remove it with setfacl, or restore the file"
                yield Problem("acl", f"inode {ino}", message)
                continue
            if name == acl.ACCESS and bits != mode & 0o777:
                message = f"has mode {mode:o}, its ACL says {bits:o}: chmod it to what is right"
                yield Problem("acl-mode", f"inode {ino}", message)


def _name(parent: int, name: bytes) -> str:
    return f"name {show(name)} in directory {parent}"


INVARIANTS = (
    Invariant("root", root_exists),
    Invariant("names and inodes", names_lead_to_inodes),
    Invariant("names and directories", names_are_in_directories),
    Invariant("names", names_can_be_found),
    Invariant("links of files", files_have_their_links),
    Invariant("links of directories", directories_have_their_links),
    Invariant("way to the root", directories_can_be_reached),
    Invariant("inodes", inodes_make_sense),
    Invariant("ACLs", acls_make_sense),
)
