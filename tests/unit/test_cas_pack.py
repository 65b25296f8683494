"""The pack format: what is parsed is what was written, and nothing else is."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_engine.backends.base import View
from nexus_engine.cas.codec import CODEC_RAW, CODEC_ZSTD, MAX_CHUNK, encode
from nexus_engine.cas.pack import (
    KIND_CHUNK,
    KIND_INTENT,
    MAX_RECORD,
    PACK_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    RecordScan,
    ScanStop,
    content_of,
    encode_pack_header,
    encode_record,
    intent_record,
    parse_pack_header,
    parse_record,
)
from nexus_engine.errors import CorruptChunk
from nexus_engine.types import Digest

PACK = "00112233445566778899aabbccddeeff"
TEXT = b"All happy families are alike; each unhappy family is unhappy in its own way. " * 5


def chunk_record(content: bytes) -> bytes:
    codec, payload = encode(content)
    digest = Digest(sha256(content).digest())
    return encode_record(KIND_CHUNK, codec, len(content), digest, payload)


def scan_of(pack: bytes, start: int = 0) -> RecordScan:
    def read(offset: int, length: int) -> View:
        assert length <= MAX_RECORD
        return pack[offset : offset + length]

    return RecordScan(read, start)


def test_the_layout_is_the_documented_one() -> None:
    """Packs outlive the code that wrote them: these bytes must never change."""
    assert encode_pack_header(PACK) == (
        b"NEXUSPK1" + bytes.fromhex(PACK) + b"\x01\0\0\0" + b"\0\0\0\0"
    )
    digest = sha256(b"hello").digest()
    record = encode_record(KIND_CHUNK, CODEC_RAW, 5, Digest(digest), b"hello")
    assert record[:16] == b"NXR1" + b"\x01\0\0\0" + b"\x3d\0\0\0" + b"\x05\0\0\0"
    assert record[16:24].hex() == "f39d021e7f4c5ffc"
    assert record[24:] == digest + b"hello"
    assert (PACK_HEADER_SIZE, RECORD_HEADER_SIZE) == (32, 56)


@given(st.binary(max_size=2000))
def test_a_record_parses_to_what_was_encoded(content: bytes) -> None:
    """Whatever follows it in the buffer."""
    record = parse_record(chunk_record(content) + b"following", 77)
    assert record.kind == KIND_CHUNK
    assert record.offset == 77
    assert record.stored_length == len(chunk_record(content))
    assert record.length == len(content)
    assert record.digest == sha256(content).digest()
    assert content_of(record) == content


def test_an_intent_carries_its_payload() -> None:
    """Its digest is that of the payload, so that it too can be verified."""
    record = parse_record(intent_record(b'{"create": 7}'))
    assert record.kind == KIND_INTENT
    assert content_of(record) == b'{"create": 7}'


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_corrupt_and_never_crash(buffer: bytes) -> None:
    """Also with a magic number in front, to get past the first check."""
    for hostile in (buffer, b"NXR1" + buffer, b"NXR1\x01\0\0\0" + buffer):
        with pytest.raises(CorruptChunk):
            parse_record(hostile)


@given(st.binary(min_size=1, max_size=500), st.data())
def test_a_flipped_bit_is_always_detected(content: bytes, data: st.DataObject) -> None:
    """In the header as well as in the payload."""
    record = bytearray(chunk_record(content))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptChunk):
        parse_record(bytes(record))


def test_every_single_bit_of_a_record_counts() -> None:
    """Exhaustively, for one that is compressed, in a buffer that goes on."""
    good = chunk_record(TEXT)
    assert parse_record(good).codec == CODEC_ZSTD
    for bit in range(len(good) * 8):
        bad = bytearray(good + bytes(300))
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptChunk):
            parse_record(bytes(bad))


def test_content_that_is_not_what_the_digest_names_is_corrupt() -> None:
    """The checksum only says that the record is as it was written."""
    forged = encode_record(KIND_CHUNK, CODEC_RAW, 5, Digest(bytes(32)), b"hello")
    record = parse_record(forged)
    with pytest.raises(CorruptChunk, match="digest"):
        content_of(record)


@pytest.mark.parametrize("header", [b"", b"NEXUSPK1", b"PK" + bytes(40)])
def test_what_is_no_pack_is_not_taken_for_one(header: bytes) -> None:
    """Neither a file that was cut short nor one of another kind."""
    with pytest.raises(CorruptChunk):
        parse_pack_header(header)
    assert list(scan := scan_of(header)) == []
    assert scan.end == 0
    assert scan.stop in (ScanStop.TORN, ScanStop.CORRUPT)


def test_a_pack_of_a_later_format_is_refused() -> None:
    """Its records may mean something else."""
    header = bytearray(encode_pack_header(PACK))
    header[24] = 2
    with pytest.raises(CorruptChunk, match="format 2"):
        parse_pack_header(bytes(header))


def test_a_scan_yields_every_record_in_order() -> None:
    """Larger than the read-ahead together, so that the window moves."""
    contents = [bytes([n]) * n * 50 + TEXT for n in range(100)]
    large = [b"%d" % n + random.Random(n).randbytes(700_000) for n in range(5)]
    records = [chunk_record(content) for content in contents + large]
    scan = scan_of(encode_pack_header(PACK) + b"".join(records))
    found = list(scan)
    assert [content_of(record) for record in found] == contents + large
    assert [record.stored_length for record in found] == list(map(len, records))
    assert scan.stop is ScanStop.END
    assert scan.pack == PACK
    assert scan.end == PACK_HEADER_SIZE + sum(map(len, records))


def test_a_scan_may_begin_at_any_record() -> None:
    """Recovery looks only at what was not synced."""
    first, second = chunk_record(b"one"), chunk_record(b"two")
    pack = encode_pack_header(PACK) + first + second
    (record,) = scan_of(pack, PACK_HEADER_SIZE + len(first))
    assert content_of(record) == b"two"
    assert record.offset == PACK_HEADER_SIZE + len(first)


def test_a_scan_can_be_taken_up_again_where_it_ended() -> None:
    """A pack that is being written grows."""
    pack = bytearray(encode_pack_header(PACK) + chunk_record(b"one"))
    scan = RecordScan(lambda offset, length: bytes(pack[offset : offset + length]))
    assert [content_of(record) for record in scan] == [b"one"]
    pack += chunk_record(b"two")
    assert [content_of(record) for record in scan] == [b"two"]
    assert scan.end == len(pack)


def test_a_scan_stops_at_the_first_corrupt_record() -> None:
    """And says where the valid part ends, and what is wrong there."""
    records = [chunk_record(b"%d" % n) for n in range(3)]
    damaged = bytearray(records[1])
    damaged[-1] ^= 1
    scan = scan_of(encode_pack_header(PACK) + records[0] + damaged + records[2])
    assert [content_of(record) for record in scan] == [b"0"]
    assert scan.stop is ScanStop.CORRUPT
    assert scan.end == PACK_HEADER_SIZE + len(records[0])
    assert "checksum" in scan.reason


def test_a_tail_of_zeros_is_corrupt_and_not_torn() -> None:
    """What ext4 and xfs leave after power loss, where the size was written but no data."""
    scan = scan_of(encode_pack_header(PACK) + chunk_record(b"one") + bytes(5000))
    assert len(list(scan)) == 1
    assert scan.stop is ScanStop.CORRUPT
    assert scan.end == PACK_HEADER_SIZE + len(chunk_record(b"one"))


@given(st.lists(st.binary(max_size=200), max_size=4), st.binary(max_size=400))
def test_a_scan_of_anything_ends_within_it(contents: list[bytes], tail: bytes) -> None:
    """Whatever follows valid records: they are found, and the scan ends."""
    valid = encode_pack_header(PACK) + b"".join(map(chunk_record, contents))
    scan = scan_of(valid + tail)
    assert [content_of(record) for record in scan] == contents
    assert scan.end == len(valid)
    assert scan.stop is not None


@pytest.mark.parametrize(
    ("stored_length", "length"),
    [(0, 0), (55, 0), (MAX_RECORD + 1, 10), (2**32 - 1, 10), (100, MAX_CHUNK + 1)],
)
def test_lengths_out_of_bounds_are_refused_before_they_are_read(
    stored_length: int, length: int
) -> None:
    """A hostile length must neither stall a scan nor make it allocate."""
    record = bytearray(chunk_record(b"x" * 200))
    record[8:12] = stored_length.to_bytes(4, "little")
    record[12:16] = length.to_bytes(4, "little")
    scan = scan_of(encode_pack_header(PACK) + bytes(record))
    assert list(scan) == []
    assert scan.stop is ScanStop.CORRUPT
    assert "out of bounds" in scan.reason
