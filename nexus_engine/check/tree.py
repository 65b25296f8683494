"""Invariants of the current tree: names, inodes, link counts."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_engine import errors
from nexus_engine.check.naming import entry_name, inode_name
from nexus_engine.check.problems import REPAIR, Invariant, Problem
from nexus_engine.meta import check_queries
from nexus_engine.permissions import acl
from nexus_engine.store import Store


def root_exists(store: Store) -> Iterator[Problem]:
    if not check_queries.has_root(store.database.connection):
        yield Problem("root-missing", "/ (inode 1)", f"there is no root directory: {REPAIR}")


def names_lead_to_inodes(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name, ino, kind, mode in check_queries.dangling_dentries(connection):
        where = entry_name(connection, parent, name)
        if mode is None:
            message = (
                f"leads to inode {ino}, which does not exist: {REPAIR} with what is left of it"
            )
            yield Problem("dentry-dangling", where, message)
        else:
            message = f"says type {kind:o}, inode {ino} has mode {mode:o}: {REPAIR}"
            yield Problem("dentry-kind", where, message)


def names_are_in_directories(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for parent, name in check_queries.homeless_dentries(connection):
        message = f"is in inode {parent}, which is no directory: {REPAIR}"
        yield Problem("dentry-homeless", entry_name(connection, parent, name), message)


def names_can_be_found(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for _, parent, _, name in check_queries.misplaced_dentries(connection):
        message = f"is no valid name, or filed where no lookup finds it: {REPAIR}"
        yield Problem("dentry-name", entry_name(connection, parent, name), message)


def files_have_their_links(store: Store) -> Iterator[Problem]:
    """An inode without names and links is an open file that was removed: nothing is wrong."""
    connection = store.database.connection
    for ino, nlink, names in check_queries.wrong_file_links(connection):
        has = f"has {names} names" if names else "has no name any more"
        message = f"counts {nlink} links but {has}: {REPAIR}"
        yield Problem("file-links", inode_name(connection, ino), message)


def directories_have_their_links(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for ino, nlink, names, below in check_queries.wrong_directory_links(connection):
        if nlink != 2 + below:
            message = f"counts {nlink} links but has {below} directories in it: {REPAIR}"
            yield Problem("directory-links", inode_name(connection, ino), message)
        if names != (0 if ino == 1 else 1):
            message = f"has {names} names: {REPAIR}"
            yield Problem("directory-names", inode_name(connection, ino), message)


def directories_can_be_reached(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for (ino,) in check_queries.unreachable_directories(connection):
        message = f"cannot be reached from the root: {REPAIR}"
        yield Problem("directory-unreachable", inode_name(connection, ino), message)


def inodes_make_sense(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for wrong in check_queries.wrong_inodes(connection):
        when = "" if wrong.to_seq is None else f" until op-{wrong.to_seq - 1}"
        what = f"mode {wrong.mode:o}, size {wrong.size}, link target {wrong.target!r}"
        message = f"contradicts itself{when} ({what}): {REPAIR}"
        yield Problem("inode-fields", inode_name(connection, wrong.ino), message)


def acls_make_sense(store: Store) -> Iterator[Problem]:
    connection = store.database.connection
    for name in acl.NAMES:
        for ino, mode, value in check_queries.acls(connection, name):
            where = inode_name(connection, ino)
            try:
                bits = acl.Acl.parse(value).permission_bits
            except errors.EngineError as error:
                yield Problem("acl", where, f"{name.decode()}: {error}: {REPAIR}")
                continue
            if name == acl.ACCESS and bits != mode & 0o777:
                message = f"has mode {mode:o}, its ACL says {bits:o}: {REPAIR}, by the mode"
                yield Problem("acl-mode", where, message)


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
