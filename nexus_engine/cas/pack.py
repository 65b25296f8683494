"""The pack format: a header, then records that describe themselves.

All integers are little-endian.

====== ==== ==============================================
offset size pack header (32 bytes)
====== ==== ==============================================
0      8    magic ``NEXUSPK1``
8      16   pack id
24     4    format version, 1
28     4    reserved, 0
====== ==== ==============================================

====== ==== ==============================================================
offset size record
====== ==== ==============================================================
0      4    magic ``NXR1``
4      1    kind: 1 chunk, 2 intent
5      1    codec of the payload
6      2    reserved, 0
8      4    stored length: the whole record, this header included, bytes
12     4    length: the decoded content, bytes
16     8    xxh3_64 of bytes 0-15 and of everything from byte 24 on
24     32   digest: SHA-256 of the decoded content
56     …    payload
====== ==== ==============================================================

A record is found either through the index (digest → pack, offset, stored length) or by a scan
from the header on. The checksum covers the header, so that a flipped bit in a length cannot
lead a scan astray unnoticed. It is no defence against somebody who means harm: whoever can
write packs can compute it. Lengths are therefore bounded before anything is allocated.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from xxhash import xxh3_64

from nexus_engine.backends.base import View
from nexus_engine.cas.codec import CODEC_RAW, MAX_CHUNK, BytesLike, decode
from nexus_engine.errors import CorruptChunk
from nexus_engine.types import Digest

KIND_CHUNK = 1
KIND_INTENT = 2

FORMAT_VERSION = 1
PACK_SIZE = 64 << 20
"""A pack of this many bytes gets no further records."""

_PACK_HEADER = struct.Struct("<8s16sII")
_PACK_MAGIC = b"NEXUSPK1"
PACK_HEADER_SIZE: Final = _PACK_HEADER.size

_RECORD_HEADER = struct.Struct("<4sBBHIIQ32s")
_RECORD_PREFIX = struct.Struct("<4sBBHII")
_CHECKSUM = struct.Struct("<Q")
_RECORD_MAGIC = b"NXR1"
_CHECKSUM_AT = _RECORD_PREFIX.size
_DIGEST_AT = _CHECKSUM_AT + _CHECKSUM.size
RECORD_HEADER_SIZE: Final = _RECORD_HEADER.size

_SLACK = 64 << 10
"""Room for what a codec may add to content that it cannot shrink."""
MAX_RECORD = RECORD_HEADER_SIZE + MAX_CHUNK + _SLACK
"""Bytes of one record, at most."""

_READ_AHEAD = 1 << 20


class PackRecord(NamedTuple):
    """One record whose checksum is right."""

    kind: int
    offset: int
    """Where it begins in its pack."""
    stored_length: int
    """The whole record, bytes."""
    length: int
    """The decoded content, bytes."""
    codec: int
    digest: Digest
    payload: View


class ScanStop(enum.Enum):
    """Why a scan went no further."""

    END = "end"
    """The pack ends where a record ends."""
    TORN = "torn"
    """The pack ends inside a record: an append that a crash cut short."""
    CORRUPT = "corrupt"
    """There is something that is no valid record."""


def pack_key(pack: str) -> str:
    """Return the object key of a pack (id: 32 hex digits)."""
    return f"packs/{pack}.pack"


def pack_name(key: str) -> str:
    """Return the pack that an object key is of."""
    return key.removeprefix("packs/").removesuffix(".pack")


def encode_pack_header(pack: str) -> bytes:
    return _PACK_HEADER.pack(_PACK_MAGIC, bytes.fromhex(pack), FORMAT_VERSION, 0)


def parse_pack_header(header: View) -> str:
    """Return the id of the pack that begins with ``header``.

    Raises:
        CorruptChunk: no pack of a version that we know begins like this.
    """
    if len(header) < PACK_HEADER_SIZE:
        raise CorruptChunk("the pack's header is cut short")
    magic, pack, version, _ = _PACK_HEADER.unpack_from(header)
    if magic != _PACK_MAGIC:
        raise CorruptChunk("the file is not a pack")
    if version != FORMAT_VERSION:
        raise CorruptChunk(f"pack format {version} is unknown")
    return str(pack.hex())


def encode_record(kind: int, codec: int, length: int, digest: Digest, payload: BytesLike) -> bytes:
    """Return the record, ready to be appended.

    Args:
        length: The decoded content, bytes, at most `MAX_CHUNK`.
    """
    stored_length = RECORD_HEADER_SIZE + len(payload)
    prefix = _RECORD_PREFIX.pack(_RECORD_MAGIC, kind, codec, 0, stored_length, length)
    checksum = xxh3_64(prefix)
    checksum.update(digest)
    checksum.update(payload)
    return b"".join((prefix, _CHECKSUM.pack(checksum.intdigest()), digest, payload))


def intent_record(payload: bytes) -> bytes:
    """Return an intent: bytes that the engine wants found by a scan after a crash."""
    digest = Digest(sha256(payload).digest())
    return encode_record(KIND_INTENT, CODEC_RAW, len(payload), digest, payload)


def parse_record(buffer: View, offset: int = 0) -> PackRecord:
    """Return the record with which ``buffer`` begins; what follows it is not looked at.

    Args:
        offset: What to report as the record's place in its pack.

    Returns:
        The record; its payload is a view of ``buffer``.

    Raises:
        CorruptChunk: torn, or not as it was written; the message says how.
    """
    stored_length = _stored_length(buffer)
    view = memoryview(buffer)
    if len(view) < stored_length:
        raise CorruptChunk(f"the record is cut short: {len(view)} bytes of {stored_length}")
    _, kind, codec, _, _, length, expected, digest = _RECORD_HEADER.unpack_from(view)
    checksum = xxh3_64(view[:_CHECKSUM_AT])
    checksum.update(view[_DIGEST_AT:stored_length])
    if checksum.intdigest() != expected:
        raise CorruptChunk("the checksum does not match")
    payload = view[RECORD_HEADER_SIZE:stored_length]
    return PackRecord(kind, offset, stored_length, length, codec, digest, payload)


def content_of(record: PackRecord) -> View:
    """Return the decoded content, compared with its SHA-256.

    For scrubbing and rebuilding. A plain read leaves this last check out: the checksum
    already detects what decays, at a tenth of the price.

    Raises:
        CorruptChunk: it cannot be decoded, or is not what the digest names.
    """
    content = decode(record.codec, record.payload, record.length)
    if sha256(content).digest() != record.digest:
        raise CorruptChunk("the content does not match its digest")
    return content


class RecordScan:
    """Iterate over a pack's records, up to the first that is torn or corrupt.

    When the iteration is over, ``end`` is where the valid part ends, and ``stop`` and
    ``reason`` say why there. A pack may hold anything: memory is bounded by `MAX_RECORD`,
    and each step advances by a record header at least.

    A torn end is normal after a crash, and at the end of a pack that is being written. With a
    length destroyed, corruption may look torn: whoever knows how much of the pack was synced
    knows better. To go on behind a corrupt record, begin again at an offset from the index.

    Args:
        read: (offset, length) → bytes; short only at the end of the pack.
        start: Where to begin: 0 for the whole pack, with its header, or a record's offset.
    """

    def __init__(self, read: Callable[[int, int], View], start: int = 0) -> None:
        self._read = read
        self._window: View = b""
        self._window_at = 0
        self.pack: str | None = None
        """The id in the header; known once a scan from 0 has begun."""
        self.end = start
        self.stop: ScanStop | None = None
        """``None`` while there may be more."""
        self.reason = ""

    def __iter__(self) -> Iterator[PackRecord]:
        if self.end == 0 and not self._read_header():
            return
        while record := self._next():
            self.end += record.stored_length
            yield record

    def _read_header(self) -> bool:
        header = self._peek(PACK_HEADER_SIZE)
        try:
            self.pack = parse_pack_header(header)
        except CorruptChunk as error:
            short = len(header) < PACK_HEADER_SIZE
            self._finish(ScanStop.TORN if short else ScanStop.CORRUPT, str(error))
            return False
        self.end = PACK_HEADER_SIZE
        return True

    def _next(self) -> PackRecord | None:
        """Return the next record; where there is none, say why and return ``None``."""
        head = self._peek(RECORD_HEADER_SIZE)
        if len(head) < RECORD_HEADER_SIZE:
            if head:
                self._finish(ScanStop.TORN, "the pack ends inside a record's header")
            else:
                self._finish(ScanStop.END, "the pack ends")
            return None
        try:
            stored_length = _stored_length(head)
            # A copy: a caller who keeps a payload must not keep the whole window alive.
            buffer = bytes(self._peek(stored_length))
            if len(buffer) == stored_length:
                return parse_record(buffer, self.end)
            self._finish(ScanStop.TORN, "the pack ends inside a record")
        except CorruptChunk as error:
            self._finish(ScanStop.CORRUPT, str(error))
        return None

    def _peek(self, length: int) -> View:
        """Return the next ``length`` bytes, fewer at the end of the pack."""
        skip = self.end - self._window_at
        if skip + length > len(self._window):
            # Read ahead: on a remote store each read is a request.
            self._window = memoryview(self._read(self.end, max(length, _READ_AHEAD)))
            self._window_at = self.end
            skip = 0
        return self._window[skip : skip + length]

    def _finish(self, stop: ScanStop, reason: str) -> None:
        self.stop = stop
        self.reason = reason
        self._window = b""


def _stored_length(header: View) -> int:
    """Return the stored length of the record that begins here, if it can be one at all."""
    if len(header) < RECORD_HEADER_SIZE:
        raise CorruptChunk(f"the record is cut short: {len(header)} bytes")
    magic, kind, _, _, stored_length, length = _RECORD_PREFIX.unpack_from(header)
    if magic != _RECORD_MAGIC:
        raise CorruptChunk("no record begins here")
    if kind not in (KIND_CHUNK, KIND_INTENT):
        raise CorruptChunk(f"record kind {kind} is unknown")
    if not RECORD_HEADER_SIZE <= stored_length <= MAX_RECORD or length > MAX_CHUNK:
        raise CorruptChunk(f"lengths of {stored_length} and {length} bytes are out of bounds")
    return int(stored_length)
