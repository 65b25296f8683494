"""Encoding of chunks: lossless, worth it, and bounded on hostile input."""

from __future__ import annotations

import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nexus_engine.cas.codec import CODEC_RAW, CODEC_ZSTD, MAX_CHUNK, decode, encode
from nexus_engine.errors import CorruptChunk

TEXT = b"The quick brown fox jumps over the lazy dog. " * 200


@given(st.binary(max_size=600), st.integers(1, 300))
def test_what_is_encoded_decodes_to_itself(seed: bytes, repeats: int) -> None:
    """Of any kind, from incompressible to all the same."""
    data = seed * repeats
    codec, payload = encode(data)
    assert len(payload) <= len(data)
    assert decode(codec, bytes(payload), len(data)) == data


def test_text_is_compressed() -> None:
    """Most of what people keep is text."""
    codec, payload = encode(TEXT)
    assert codec == CODEC_ZSTD
    assert len(payload) < len(TEXT) / 4


@pytest.mark.parametrize(
    "data",
    [b"", b"a" * 127, random.Random(1).randbytes(4096), random.Random(2).randbytes(1 << 20)],
    ids=["empty", "small", "random", "large random"],
)
def test_what_does_not_pay_stays_raw_and_uncopied(data: bytes) -> None:
    """A frame that saves less than an eighth costs more CPU than it is worth."""
    codec, payload = encode(data)
    assert codec == CODEC_RAW
    assert payload is data


def test_a_large_chunk_with_one_compressible_sample_is_compressed() -> None:
    """Looking at the start alone would take a header for the whole."""
    noise = random.Random(3).randbytes(8192)
    codec, _ = encode(noise + TEXT * 20)
    assert codec == CODEC_ZSTD


def test_any_kind_of_buffer_is_taken() -> None:
    """The engine passes slices of write buffers."""
    expected = encode(TEXT)
    assert encode(bytearray(TEXT)) == expected
    assert encode(memoryview(b"x" + TEXT)[1:]) == expected


@given(st.integers(0, 255), st.binary(max_size=300), st.integers(-1, MAX_CHUNK + 1))
def test_arbitrary_payloads_decode_to_the_length_or_are_corrupt(
    codec: int, payload: bytes, length: int
) -> None:
    """Nothing else may come out of hostile bytes: no crash, no other length."""
    try:
        content = decode(codec, payload, length)
    except CorruptChunk:
        return
    assert len(content) == length


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """zstd allocates what the frame claims, whatever limit the call gives."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    tracemalloc.start()
    try:
        for payload in (bomb, streamed):
            for length in (0, 100, MAX_CHUNK, 1 << 28):
                with pytest.raises(CorruptChunk):
                    decode(CODEC_ZSTD, payload, length)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_frame_that_lies_about_its_length_is_corrupt() -> None:
    """The claimed length is a field of the frame like any other."""
    data = os.urandom(300)
    honest = zstandard.ZstdCompressor().compress(data + data)
    # Two bytes at offset 5 hold the content size - 256 (RFC 8878, 3.1.1.1).
    claim = int.from_bytes(honest[5:7], "little") + 256
    assert claim == 600
    for lie in (599, 601, 4000):
        forged = honest[:5] + (lie - 256).to_bytes(2, "little") + honest[7:]
        with pytest.raises(CorruptChunk):
            decode(CODEC_ZSTD, forged, lie)


@pytest.mark.parametrize("extra", [b"x", zstandard.ZstdCompressor().compress(TEXT)])
def test_nothing_may_follow_the_frame(extra: bytes) -> None:
    """Bytes that nobody decodes are bytes that nobody verifies."""
    _, payload = encode(TEXT)
    with pytest.raises(CorruptChunk):
        decode(CODEC_ZSTD, bytes(payload) + extra, len(TEXT))


def test_raw_content_of_another_length_is_corrupt() -> None:
    """Too short as well as too long."""
    for length in (0, 4, 6):
        with pytest.raises(CorruptChunk):
            decode(CODEC_RAW, b"12345", length)


def test_threads_do_not_share_coders() -> None:
    """zstandard's objects crash when two threads are in one."""
    blocks = [bytes([n]) * 3000 + TEXT[n:] for n in range(64)]

    def round_trip(_: int) -> bool:
        return all(
            decode(codec, bytes(payload), len(block)) == block
            for block in blocks
            for codec, payload in [encode(block)]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(40)))
