"""How a chunk's bytes are written down: as they are, or compressed where that pays."""

from __future__ import annotations

import threading
from typing import TypeAlias

import zstandard

from nexus_engine.backends.base import View
from nexus_engine.errors import CorruptChunk

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; not to be changed by anyone during the call."""

CODEC_RAW = 0
CODEC_ZSTD = 1

MAX_CHUNK = 4 << 20
"""Bytes of one decoded chunk, at most."""

_LEVEL = 1
_SMALLEST = 128
"""Shorter chunks stay raw: the zstd frame and its CPU cost more than what it could save."""
_PROBE_FROM = 64 << 10
_PROBE = 4 << 10
_MAX_WINDOW = 8 << 20
"""What a decoder may allocate because a frame says so, bytes; ours never need more."""


class _Coders(threading.local):
    """zstandard's objects keep a context that two threads must not use at once."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress
        self.decompress = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress


_coders = _Coders()


def encode(data: BytesLike) -> tuple[int, BytesLike]:
    """Return the codec and the payload; for `CODEC_RAW` the payload is ``data`` itself."""
    if len(data) < _SMALLEST or (len(data) >= _PROBE_FROM and not _looks_compressible(data)):
        return CODEC_RAW, data
    payload = _coders.compress(data)
    return (CODEC_ZSTD, payload) if _pays(payload, data) else (CODEC_RAW, data)


def decode(codec: int, payload: View, length: int) -> View:
    """Return the ``length`` bytes that ``payload`` stands for.

    The payload is not trusted: never is more than ``length`` allocated for the result, nor
    more than `MAX_CHUNK`.

    Returns:
        For `CODEC_RAW` the payload itself, without a copy.

    Raises:
        CorruptChunk: the payload is not such an encoding; the message says why.
    """
    if not 0 <= length <= MAX_CHUNK:
        raise CorruptChunk(f"a length of {length} bytes is out of bounds")
    if codec == CODEC_RAW:
        if len(payload) != length:
            raise CorruptChunk(f"{len(payload)} bytes where there should be {length}")
        return payload
    if codec == CODEC_ZSTD:
        return _decompress(payload, length)
    raise CorruptChunk(f"codec {codec} is unknown")


def _decompress(payload: View, length: int) -> bytes:
    try:
        # The library allocates what the frame claims, whatever limit it is given.
        claimed = zstandard.frame_content_size(payload)
        if claimed != length:
            raise CorruptChunk(f"compressed data of {claimed} bytes where {length} are due")
        content = _coders.decompress(payload, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptChunk(f"compressed data cannot be read: {error}") from error
    if len(content) != length:
        raise CorruptChunk(f"{len(content)} bytes decompressed where {length} are due")
    return content


def _looks_compressible(data: BytesLike) -> bool:
    # Media and archives come in large files: 8 KiB tried here spare them the whole pass.
    view = memoryview(data)
    middle = len(view) // 2
    samples = (view[:_PROBE], view[middle : middle + _PROBE])
    return any(_pays(_coders.compress(sample), sample) for sample in samples)


def _pays(payload: bytes, data: BytesLike) -> bool:
    return len(payload) * 8 <= len(data) * 7
