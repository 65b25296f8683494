"""Named moments: make, drop, list. Rules that run inside a transaction, as those of ``fs`` do."""

from __future__ import annotations

import unicodedata

from nexus_engine import errors
from nexus_engine.history.moments import is_reserved
from nexus_engine.meta import history_queries
from nexus_engine.meta.database import Database
from nexus_engine.meta.history_queries import SnapshotRow
from nexus_engine.meta.transaction import Transaction
from nexus_engine.records import Change
from nexus_engine.reserve import frees_space
from nexus_engine.store import Store
from nexus_engine.types import NAME_MAX, ROOT_INO, Actor, Path, Seq

__all__ = ["SnapshotRow", "add_snapshot", "create", "drop", "list_all", "remove_snapshot"]


def create(store: Store, name: str, actor: Actor) -> Seq:
    """Name the log's end.

    Returns:
        The last operation that the snapshot contains.

    Raises:
        AlreadyExists, InvalidName, NameTooLong.
    """
    return store.transact(add_snapshot, actor, name)


def drop(store: Store, name: str, actor: Actor) -> None:
    """Forget a name; the moment itself stays.

    Raises:
        NotFound: There is no such snapshot.
        OperationNotPermitted: Somebody else made it.
    """
    store.transact(remove_snapshot, actor, name)


def list_all(database: Database) -> list[SnapshotRow]:
    """Return every snapshot, oldest first."""
    return history_queries.list_snapshots(database.connection)


def add_snapshot(tx: Transaction, name: str) -> Seq:
    """Rule: see ``create``."""
    check_snapshot_name(name)
    if tx.find_snapshot(name) is not None:
        raise errors.AlreadyExists(f"there is a snapshot {name} already")
    seq = tx.head_seq
    tx.add_snapshot(name, seq)
    tx.commit(Change("snapshot", ROOT_INO, Path(b""), details={"name": name, "seq": seq}))
    return seq


@frees_space
def remove_snapshot(tx: Transaction, name: str) -> None:
    """Rule: see ``drop``."""
    seq = tx.find_snapshot(name)
    if seq is None:
        raise errors.NotFound(f"there is no snapshot {name}")
    keeper = tx.get_inode(ROOT_INO).uid
    if tx.actor.uid not in (0, keeper, tx.snapshot_owner(name)):
        raise errors.OperationNotPermitted("only its maker, the store's owner and root may drop it")
    tx.remove_snapshot(name)
    tx.commit(Change("drop-snapshot", ROOT_INO, Path(b""), None, {"name": name}, {"seq": seq}))


def check_snapshot_name(name: str) -> None:
    """Refuse what cannot be a snapshot's name: it must be a path component, and no moment."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise errors.InvalidName("a snapshot's name must be UTF-8") from error
    if length > NAME_MAX:
        raise errors.NameTooLong(f"snapshot name of {length} bytes; at most {NAME_MAX}")
    if not name or name in (".", "..") or "/" in name:
        raise errors.InvalidName(f"not a name for a snapshot: {name!r}")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise errors.InvalidName("a snapshot's name has no control characters")
    if is_reserved(name):
        raise errors.InvalidName(f"{name} is a moment of its own; give the snapshot another name")
