"""The SQLite schema. This commented DDL is the authority on what a row means.

Current rows are small and hot. A replaced or removed row moves to its ``_past`` table with the
interval ``[from_seq, to_seq)`` in which it was true. All ``*_ns`` are nanoseconds since the epoch.
"""

from __future__ import annotations

import re

APPLICATION_ID = 0x4E585553  # "NXUS"

_V1 = """
-- Facts about the store as a whole: store_id, tenant_id, created_ns, next_ino.
CREATE TABLE store (
    key TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,         -- never reused: next_ino in `store` only grows
    from_seq INTEGER NOT NULL,       -- the operation that made this version
    mode INTEGER NOT NULL,           -- st_mode: type and permissions
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    nlink INTEGER NOT NULL,          -- 0: unlinked, still open somewhere, in no view
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,       -- last read, about: reading is not an operation
    mtime_ns INTEGER NOT NULL,       -- a directory's as of from_seq; see touched_ns
    ctime_ns INTEGER NOT NULL,       -- likewise
    btime_ns INTEGER NOT NULL,
    content_seq INTEGER NOT NULL,    -- the operation that last changed the bytes
    target BLOB,                     -- symlinks
    -- Directories: time of the newest change of a child since from_seq. It stands for mtime and
    -- ctime, and saves a version row per create; as-of views find it through child_change.
    touched_ns INTEGER
) STRICT;

CREATE TABLE inode_past (
    ino INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    btime_ns INTEGER NOT NULL,
    content_seq INTEGER NOT NULL,
    target BLOB,
    to_seq INTEGER NOT NULL,
    PRIMARY KEY (ino, to_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    hash INTEGER NOT NULL,           -- of the name, 3 .. 2^62+2: readdir's order and cookie
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    kind INTEGER NOT NULL,           -- S_IFMT of the inode's mode
    from_seq INTEGER NOT NULL,
    PRIMARY KEY (parent, hash, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX dentry_ino ON dentry (ino);
-- A directory's link count as of a moment is the number of directories in it then.
CREATE INDEX dentry_directory ON dentry (parent, from_seq) WHERE kind = 16384;

CREATE TABLE dentry_past (
    parent INTEGER NOT NULL,
    hash INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq INTEGER NOT NULL,
    PRIMARY KEY (parent, hash, name, to_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX dentry_past_ino ON dentry_past (ino);
CREATE INDEX dentry_past_directory ON dentry_past (parent, to_seq) WHERE kind = 16384;

-- The operations at which a name in a directory came, went or changed: what a directory's times as
-- of a moment are derived from.
CREATE TABLE child_change (
    parent INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (parent, seq)
) STRICT, WITHOUT ROWID;

-- Extents and xattrs of an inode that is gone stay here: the inode's own row says when it lived,
-- removing it costs the same for a large file as for a small one, and so does bringing it back.
CREATE TABLE extent (
    ino INTEGER NOT NULL,
    start INTEGER NOT NULL,          -- file offset; extents are disjoint; gaps are holes
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,            -- SHA-256 of the chunk
    chunk_offset INTEGER NOT NULL,   -- where in the chunk this slice begins
    from_seq INTEGER NOT NULL,
    PRIMARY KEY (ino, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE extent_past (
    ino INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,
    chunk_offset INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq INTEGER NOT NULL,
    PRIMARY KEY (ino, start, to_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    from_seq INTEGER NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE xattr_past (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq INTEGER NOT NULL,
    PRIMARY KEY (ino, name, to_seq)
) STRICT, WITHOUT ROWID;

-- Where each chunk lies. Can be rebuilt from the packs.
CREATE TABLE pack (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,       -- 32 hex digits; object key packs/NAME.pack
    owner TEXT                       -- process that may append to it; NULL once sealed
) STRICT;

CREATE TABLE chunk (
    digest BLOB PRIMARY KEY,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,         -- of the record in the pack
    stored_length INTEGER NOT NULL,  -- of the whole record
    length INTEGER NOT NULL,         -- decoded
    codec INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- SHA-256 of whole contents, computed when first asked for.
CREATE TABLE content_hash (
    ino INTEGER NOT NULL,
    content_seq INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    PRIMARY KEY (ino, content_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE actor (
    id INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,    -- tells a reused pid apart
    command TEXT NOT NULL,
    session INTEGER NOT NULL,
    agent TEXT NOT NULL,
    principal TEXT NOT NULL,
    UNIQUE (pid, start_ticks, command, agent, uid, gid, session, principal)
) STRICT;
CREATE INDEX actor_agent ON actor (agent) WHERE agent <> '';

-- Append-only. Times never decrease, so a moment is found by bisection over seq.
CREATE TABLE oplog (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,                -- UUID version 7
    time_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    ino INTEGER NOT NULL,
    path BLOB NOT NULL,              -- relative to the root, no leading slash
    path2 BLOB,
    details TEXT NOT NULL,           -- JSON
    undo_state TEXT,                 -- JSON
    undoes INTEGER,                  -- an undo of one operation: its seq
    actor INTEGER NOT NULL,
    hash BLOB NOT NULL               -- SHA-256 over the previous hash and this row
) STRICT;
CREATE INDEX oplog_path ON oplog (path);
CREATE INDEX oplog_path2 ON oplog (path2) WHERE path2 IS NOT NULL;
CREATE INDEX oplog_actor ON oplog (actor);

-- Which operations an undo reversed; an undo is reversed by the undo of it (a redo).
CREATE TABLE reversal (
    target INTEGER NOT NULL,
    by_seq INTEGER NOT NULL,
    PRIMARY KEY (target, by_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX reversal_by ON reversal (by_seq);

-- The names and inodes that an undo changed: its record has no room for ten thousand paths.
CREATE TABLE touched (
    seq INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    parent INTEGER NOT NULL,         -- 0: the inode itself changed, not a name
    name BLOB NOT NULL,
    PRIMARY KEY (seq, ino, parent, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot (
    name TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,            -- the last operation that it contains
    created_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The tree as paths, for the views below.
CREATE VIEW live_path AS
WITH RECURSIVE tree (ino, kind, path) AS (
    SELECT ino, kind, '/' || CAST(name AS TEXT) FROM dentry WHERE parent = 1
    UNION ALL
    SELECT d.ino, d.kind, t.path || '/' || CAST(d.name AS TEXT)
    FROM tree t JOIN dentry d ON d.parent = t.ino WHERE t.kind = 16384
)
SELECT ino, kind, path FROM tree;

CREATE VIEW file_metadata AS
SELECT (SELECT value FROM store WHERE key = 'tenant_id') AS tenant_id,
       p.path AS file_path,
       coalesce(
           (SELECT lower(hex(h.sha256)) FROM content_hash h
            WHERE h.ino = i.ino AND h.content_seq = i.content_seq),
           -- A file that is one whole chunk has the chunk's digest.
           (SELECT lower(hex(e.digest)) FROM extent e JOIN chunk c ON c.digest = e.digest
            WHERE e.ino = i.ino AND e.start = 0 AND e.chunk_offset = 0
              AND e.length = i.size AND c.length = i.size)
       ) AS content_hash,
       i.size AS size_bytes,
       i.btime_ns AS created_at,
       i.mtime_ns AS modified_at
FROM live_path p JOIN inode i ON i.ino = p.ino
WHERE p.kind = 32768;

CREATE VIEW operations AS
SELECT lower(substr(hex(o.id), 1, 8) || '-' || substr(hex(o.id), 9, 4) || '-' ||
             substr(hex(o.id), 13, 4) || '-' || substr(hex(o.id), 17, 4) || '-' ||
             substr(hex(o.id), 21)) AS id,
       (SELECT value FROM store WHERE key = 'tenant_id') AS tenant_id,
       o.kind AS operation_type,
       '/' || CAST(o.path AS TEXT) AS file_path,
       o.time_ns AS timestamp,
       o.details AS details,
       o.undo_state AS undo_state,
       (WITH RECURSIVE chain (seq, depth) AS (
            SELECT o.seq, 0
            UNION ALL
            SELECT (SELECT max(r.by_seq) FROM reversal r WHERE r.target = chain.seq), depth + 1
            FROM chain WHERE chain.seq IS NOT NULL
        )
        SELECT max(depth) % 2 FROM chain WHERE seq IS NOT NULL) AS undone
FROM oplog o;

CREATE VIEW tags AS
SELECT (SELECT value FROM store WHERE key = 'tenant_id') AS tenant_id,
       p.path AS file_path,
       substr(CAST(x.name AS TEXT), 16) AS tag_key,
       CAST(x.value AS TEXT) AS tag_value
FROM xattr x JOIN live_path p ON p.ino = x.ino
WHERE CAST(x.name AS TEXT) LIKE 'user.nexus.tag.%';
"""

_V2 = """
-- The oldest name of an inode is the one that records call it by, also among 65,000.
DROP INDEX dentry_ino;
CREATE INDEX dentry_ino ON dentry (ino, from_seq);

-- Retention. Every moment from `store.pruned_to` on is whole. Of those before, these are; of the
-- others, rows are gone.
CREATE TABLE kept (
    seq INTEGER PRIMARY KEY,
    pinned INTEGER NOT NULL,         -- 1: by a snapshot, which no class is exempt from
    time_ns INTEGER NOT NULL         -- of the operation, which may have left the log
) STRICT;

-- Files and directories of which less is kept. What they held before `until_seq` is gone, but at
-- pinned moments.
CREATE TABLE expired (
    ino INTEGER PRIMARY KEY,
    until_seq INTEGER NOT NULL
) STRICT;

-- Records up to `store.log_pruned` are gone; `store.log_pruned_hash` is the hash of the last of
-- them. What is asked of a record after that is kept where it is asked for.
ALTER TABLE child_change ADD COLUMN time_ns INTEGER;    -- NULL: the log has it
ALTER TABLE snapshot ADD COLUMN time_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshot ADD COLUMN uid INTEGER NOT NULL DEFAULT 0;    -- of who made it
UPDATE snapshot SET (time_ns, uid) = (
    SELECT o.time_ns, a.uid FROM oplog o JOIN actor a ON a.id = o.actor
    WHERE o.seq = snapshot.created_seq
);

-- Chunks that a purge is about to destroy: whoever comes next finishes what was cut short.
CREATE TABLE purging (
    digest BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- A pack on its way out: no new file may rely on what is in it, and gc moves what is live. It goes
-- when every process has said that it knows.
ALTER TABLE pack ADD COLUMN retiring INTEGER NOT NULL DEFAULT 0;
-- The records of the sessions in a pack come after this operation: while the pack has an owner, who
-- may die, they stay. One that is closing gets no more sessions.
ALTER TABLE pack ADD COLUMN begun_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pack ADD COLUMN closing INTEGER NOT NULL DEFAULT 0;
CREATE TABLE pack_seen (
    pack INTEGER NOT NULL,
    owner TEXT NOT NULL,
    PRIMARY KEY (pack, owner)
) STRICT, WITHOUT ROWID;

-- Limits of a directory, with all that is at and below it now; 1: the whole store. The row of a
-- directory that was removed stays: an undo may bring it back.
CREATE TABLE quota (
    ino INTEGER PRIMARY KEY,
    max_bytes INTEGER,               -- NULL: no limit
    max_inodes INTEGER,
    bytes INTEGER NOT NULL,          -- sizes of files and symlinks, each inode once
    inodes INTEGER NOT NULL          -- of every type, the directory itself included
) STRICT;
"""

_V3 = """
-- Workspaces: directories that began as another one was, the base. Their entries become rows when
-- somebody first looks at them, true from when they would be if all had been copied at once.
CREATE TABLE workspace (
    ino INTEGER PRIMARY KEY,
    name TEXT NOT NULL,              -- one of those that there are now has it
    base_ino INTEGER NOT NULL,
    base_seq INTEGER NOT NULL,       -- it began as the base was after this operation
    made_seq INTEGER NOT NULL,       -- the operation that made it
    uid INTEGER NOT NULL             -- of who made it
) STRICT;

-- What stands for something of a base: a copy of it, or, once applied, what it was copied to.
CREATE TABLE shadow (
    ino INTEGER PRIMARY KEY,
    workspace INTEGER NOT NULL,
    base_ino INTEGER NOT NULL,
    pending INTEGER                  -- directories: 1 while the entries are no rows yet, then 0
) STRICT;
CREATE INDEX shadow_workspace ON shadow (workspace, pending);
CREATE INDEX shadow_base ON shadow (workspace, base_ino);
CREATE INDEX shadow_pending ON shadow (ino) WHERE pending = 1;

-- When changes of a workspace went into its base: from then on these are no changes by others.
CREATE TABLE applied (
    workspace INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (workspace, seq)
) STRICT, WITHOUT ROWID;

-- Attachments: directories whose files are objects at a source, a bucket of somebody else's. One
-- lives for as long as its directory does. The row of one that is gone stays: an undo may bring it
-- back, and what was never read of the past is still asked for there.
CREATE TABLE attachment (
    number INTEGER PRIMARY KEY,
    ino INTEGER NOT NULL UNIQUE,
    url TEXT NOT NULL,
    options TEXT NOT NULL,           -- besides those in the URL: JSON, text to text
    read_only INTEGER NOT NULL,
    interval_s INTEGER NOT NULL,     -- between two looks at the source; 0: none by itself
    capabilities INTEGER NOT NULL,   -- what the source was found to be able to do: a `Capability`
    pushed_seq INTEGER NOT NULL,     -- what operations up to this one changed is at the source
    feed TEXT NOT NULL,              -- position in its change feed; empty: none
    listed_ns INTEGER NOT NULL,      -- when it was last compared with the source; 0: never
    trouble TEXT NOT NULL            -- why the source could not be used last; empty: it could
) STRICT;

-- What the objects at a source are, as far as is known, and which file has the content of each.
CREATE TABLE source_object (
    attachment INTEGER NOT NULL,
    key BLOB NOT NULL,
    path BLOB NOT NULL,              -- below the directory; another if the key is no path
    ino INTEGER NOT NULL,
    content_seq INTEGER NOT NULL,    -- the file's content that is the object's
    etag TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (attachment, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX source_object_ino ON source_object (ino);
CREATE INDEX source_object_path ON source_object (path);

-- Files that are not at the source as they are here, and why.
CREATE TABLE unpushed (
    attachment INTEGER NOT NULL,
    path BLOB NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (attachment, path)
) STRICT, WITHOUT ROWID;

-- Versions of objects that files were made of without reading them, and their chunks. Extents name
-- such a chunk by a digest that no content has.
CREATE TABLE source_version (
    number INTEGER PRIMARY KEY,
    attachment INTEGER NOT NULL,
    key BLOB NOT NULL,
    etag TEXT NOT NULL,
    UNIQUE (attachment, key, etag)
) STRICT;

CREATE TABLE lazy_chunk (
    digest BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    offset INTEGER NOT NULL,         -- in the object
    length INTEGER NOT NULL,
    content BLOB                     -- digest of the chunk that was fetched; NULL: none yet
) STRICT, WITHOUT ROWID;
CREATE INDEX lazy_chunk_version ON lazy_chunk (version, offset);
CREATE INDEX lazy_chunk_content ON lazy_chunk (content) WHERE content IS NOT NULL;
"""

MIGRATIONS = (_V1, _V2, _V3)
"""Script ``i`` takes a store from version ``i`` to ``i + 1``. Never edited once released."""

VERSION = len(MIGRATIONS)

TABLES = frozenset(re.findall(r"^CREATE TABLE (\w+)", "".join(MIGRATIONS), re.MULTILINE))
