"""The statements that change the metadata, and the names by which a journal calls them."""

from __future__ import annotations

_PAST_COLUMNS = (
    "ino, from_seq, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " content_seq, target"
)
ADD_INODE = f"INSERT INTO inode ({_PAST_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
PUT_INODE = f"INSERT OR REPLACE INTO inode ({_PAST_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
BURY_VERSION = (
    f"INSERT INTO inode_past ({_PAST_COLUMNS}, to_seq) SELECT {_PAST_COLUMNS}, ?2 FROM inode"
    " WHERE ino = ?1 AND from_seq < ?2 AND nlink > 0"
)
ADD_DENTRY = (
    "INSERT INTO dentry (parent, hash, name, ino, kind, from_seq) VALUES (?, ?, ?, ?, ?, ?)"
)
BURY_DENTRY = (
    "INSERT INTO dentry_past (parent, hash, name, ino, kind, from_seq, to_seq)"
    " SELECT parent, hash, name, ino, kind, from_seq, ?4 FROM dentry"
    " WHERE parent = ?1 AND hash = ?2 AND name = ?3 AND from_seq < ?4"
)
DROP_DENTRY = "DELETE FROM dentry WHERE parent = ? AND hash = ? AND name = ?"
ADD_CHILD_CHANGE = "INSERT OR IGNORE INTO child_change (parent, seq) VALUES (?, ?)"
TOUCH = "UPDATE inode SET touched_ns = ?, nlink = nlink + ? WHERE ino = ?"
BURY_EXTENT = (
    "INSERT INTO extent_past (ino, start, length, digest, chunk_offset, from_seq, to_seq)"
    " SELECT ino, start, length, digest, chunk_offset, from_seq, ?3 FROM extent"
    " WHERE ino = ?1 AND start = ?2 AND from_seq < ?3"
)
ADD_EXTENT = (
    "INSERT INTO extent (ino, start, length, digest, chunk_offset, from_seq)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
REWIND_EXTENTS = (
    "DELETE FROM extent WHERE ino = ?1 AND from_seq >= ?2",
    "DELETE FROM extent_past WHERE ino = ?1 AND from_seq >= ?2",
    "INSERT INTO extent SELECT ino, start, length, digest, chunk_offset, from_seq"
    " FROM extent_past WHERE ino = ?1 AND to_seq >= ?2",
    "DELETE FROM extent_past WHERE ino = ?1 AND to_seq >= ?2",
)
# From ?2 until ?3 a file shows what it showed before; what still shows then began then.
REPLACE_PAST_EXTENTS = (
    "DELETE FROM extent_past WHERE ino = ?1 AND from_seq >= ?2 AND to_seq <= ?3",
    "UPDATE extent_past SET from_seq = ?3 WHERE ino = ?1 AND from_seq >= ?2 AND from_seq < ?3",
    "UPDATE extent SET from_seq = ?3 WHERE ino = ?1 AND from_seq >= ?2 AND from_seq < ?3",
    "UPDATE extent_past SET to_seq = ?3 WHERE ino = ?1 AND from_seq < ?2"
    " AND to_seq >= ?2 AND to_seq < ?3",
)
BURY_XATTR = (
    "INSERT INTO xattr_past (ino, name, value, from_seq, to_seq)"
    " SELECT ino, name, value, from_seq, ?3 FROM xattr WHERE ino = ?1 AND name = ?2"
    " AND from_seq < ?3"
)
ADD_CHUNK = (
    "INSERT INTO chunk (digest, pack, offset, stored_length, length, codec)"
    " VALUES (?, (SELECT id FROM pack WHERE name = ?), ?, ?, ?, ?)"
    # The first one to come stays, unless its pack is on its way out.
    " ON CONFLICT (digest) DO UPDATE SET pack = excluded.pack, offset = excluded.offset,"
    " stored_length = excluded.stored_length, codec = excluded.codec"
    " WHERE (SELECT retiring FROM pack WHERE id = chunk.pack)"
)
ADD_RECORD = (
    "INSERT INTO oplog (seq, id, time_ns, kind, ino, path, path2, details, undo_state, undoes,"
    " actor, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

DROP_EXTENT = "DELETE FROM extent WHERE ino = ? AND start = ?"
DROP_INODE = "DELETE FROM inode WHERE ino = ?"
PUT_XATTR = "INSERT OR REPLACE INTO xattr (ino, name, value, from_seq) VALUES (?, ?, ?, ?)"
DROP_XATTR = "DELETE FROM xattr WHERE ino = ? AND name = ?"
ADD_ACTOR = (
    "INSERT OR IGNORE INTO actor (pid, start_ticks, command, agent, uid, gid, session,"
    " principal) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
TAKE_INOS = "UPDATE store SET value = value + ? WHERE key = 'next_ino' RETURNING value"
ADD_REVERSAL = "INSERT OR IGNORE INTO reversal (target, by_seq) VALUES (?, ?)"
ADD_TOUCHED = "INSERT OR IGNORE INTO touched (seq, ino, parent, name) VALUES (?, ?, ?, ?)"
ADD_SNAPSHOT = "INSERT INTO snapshot (name, seq, created_seq, time_ns, uid) VALUES (?, ?, ?, ?, ?)"
DROP_SNAPSHOT = "DELETE FROM snapshot WHERE name = ?"
CHARGE_QUOTA = (
    "UPDATE quota SET bytes = bytes + ?, inodes = inodes + ? WHERE ino = ?"
    " RETURNING max_bytes, max_inodes, bytes, inodes"
)

JOURNALED = {
    "add-inode": ADD_INODE,
    "put-inode": PUT_INODE,
    "bury-inode": BURY_VERSION,
    "drop-inode": DROP_INODE,
    "add-dentry": ADD_DENTRY,
    "bury-dentry": BURY_DENTRY,
    "drop-dentry": DROP_DENTRY,
    "add-child-change": ADD_CHILD_CHANGE,
    "touch": TOUCH,
    "add-extent": ADD_EXTENT,
    "bury-extent": BURY_EXTENT,
    "drop-extent": DROP_EXTENT,
    "put-xattr": PUT_XATTR,
    "bury-xattr": BURY_XATTR,
    "drop-xattr": DROP_XATTR,
    "add-chunk": ADD_CHUNK,
    "add-actor": ADD_ACTOR,
    "take-inos": TAKE_INOS,
    "add-snapshot": ADD_SNAPSHOT,
    "drop-snapshot": DROP_SNAPSHOT,
    "charge-quota": CHARGE_QUOTA,
    "add-record": ADD_RECORD,
}
"""What a journal may hold, by name: nothing else that a file says is run. A statement that changes
gets a new name; the old one stays, for the journals that earlier versions left."""
NAMES = {statement: name for name, statement in JOURNALED.items()}
