"""Packs after a crash: what was appended before it is found, whatever the end looks like."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    KIND_INTENT,
    PACK_HEADER_SIZE,
    PackRecord,
    ScanStop,
    content_of,
    pack_key,
)
from nexus_engine.cas.store import ChunkStore

CHUNKS = [b"first", random.Random(1).randbytes(300), b"text that compresses " * 20, b"last" * 10]

WRITER = """
import os, sys
from pathlib import Path
from nexus_engine.backends.local import LocalObjectStore
from nexus_engine.cas.store import ChunkStore

root = Path(sys.argv[1])
store = ChunkStore(
    LocalObjectStore(root), root / "packs", lambda digest: None, on_new_pack=lambda pack: None
)
number = 0
while True:
    (digest,) = store.put_many([b"%d " % number * (number % 500)], lambda digests: digests[0])
    os.write(1, digest.hex().encode() + b"\\n")
    number += 1
"""


def open_store(root: Path) -> ChunkStore:
    return ChunkStore(
        LocalObjectStore(root), root / "packs", lambda _: None, on_new_pack=lambda _: None
    )


def write_pack(root: Path) -> tuple[str, list[PackRecord]]:
    """Return the id of a pack that holds `CHUNKS`, and its records."""
    (root / "packs").mkdir()
    store = open_store(root)
    for chunk in CHUNKS:
        store.put(chunk)
    store.close()
    (info,) = store.packs_written()
    return info.pack, list(store.scan(info.pack))


def test_a_pack_cut_at_any_byte_keeps_the_records_before(tmp_path: Path) -> None:
    """A crash or power loss may end the file anywhere; a scan says exactly where."""
    pack, records = write_pack(tmp_path)
    path = tmp_path / pack_key(pack)
    ends = [PACK_HEADER_SIZE] + [record.offset + record.stored_length for record in records]
    store = open_store(tmp_path)
    for size in range(path.stat().st_size, -1, -1):
        os.truncate(path, size)
        scan = store.scan(pack)
        whole = [end for end in ends if end <= size]
        assert [bytes(content_of(r)) for r in scan] == CHUNKS[: max(0, len(whole) - 1)]
        assert scan.end == (whole[-1] if whole else 0)
        assert scan.stop is (ScanStop.END if size in ends else ScanStop.TORN)
        assert scan.reason


def test_a_last_record_with_any_byte_lost_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Power loss may write the size and some of the blocks, but not all."""
    pack, records = write_pack(tmp_path)
    path = tmp_path / pack_key(pack)
    good = path.read_bytes()
    last = records[-1]
    store = open_store(tmp_path)
    tried = 0
    for at in range(last.offset, len(good)):
        if good[at] == 0:
            continue
        tried += 1
        path.write_bytes(good[:at] + b"\0" + good[at + 1 :])
        scan = store.scan(pack)
        assert [bytes(content_of(record)) for record in scan] == CHUNKS[:-1]
        assert scan.end == last.offset
        assert scan.stop in (ScanStop.CORRUPT, ScanStop.TORN)
    assert tried > 60


def test_everything_put_before_a_kill_is_found_by_a_scan(tmp_path: Path) -> None:
    """kill -9: each digest that the process had reported is a promise."""
    (tmp_path / "packs").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    promised = {child.stdout.readline().strip() for _ in range(800)}
    child.send_signal(signal.SIGKILL)
    promised |= {line.strip() for line in child.stdout if line.endswith("\n")}
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert len(promised) >= 700

    (path,) = (tmp_path / "packs").iterdir()
    chunks, intents = set(), set()
    for record in open_store(tmp_path).scan(path.stem):
        content = bytes(content_of(record))
        if record.kind == KIND_CHUNK:
            chunks.add(sha256(content).hexdigest())
        else:
            assert record.kind == KIND_INTENT
            intents.add(content.hex())
    assert promised <= intents <= chunks
