"""Where an object is shown: at its key, unless that is no path.

A bucket's keys are any strings. ``a//b``, ``./a`` and ``/a`` are no paths; of ``a`` and ``a/b``
only one can be where its key says, as a file is no directory. Nothing is left out: what cannot be
at its key is at a path that says what it is.

========================  =================================================================
key                       shown as
========================  =================================================================
``a//b``, ``/a``          ``a/%2Fb``, ``%2Fa``
``a/./b``, ``a/../b``     ``a/%2E/b``, ``a/%2E%2E/b``; likewise ``.nexus``, which is ours
``a`` beside ``a/b``      ``a (object)``
``a/``, empty             the directory ``a``; not empty: the file ``a%2F``
a name of over 255 bytes  its beginning, ``…`` and a part of the key's SHA-256
========================  =================================================================

Where such a path is taken, a number is added.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping
from hashlib import sha256

from nexus_engine.types import NAME_MAX, Path

_SLASH = b"%2F"
OBJECT = b" (object)"
"""Marks what cannot have the name of its key: something else has it."""
_NOT_NAMES = {b".": b"%2E", b"..": b"%2E%2E", b".nexus": b"%2Enexus"}
_HEX = 16


def key_of(text: str) -> bytes:
    """Return a key as the store has it: names of local files need not be UTF-8."""
    return text.encode(errors="surrogateescape")


def text_of(key: bytes) -> str:
    """Return a key as buckets have it."""
    return key.decode(errors="surrogateescape")


def is_marker(key: bytes, size: int) -> bool:
    """Tell whether an object is there to say that there is a directory."""
    return key.endswith(b"/") and size == 0


def path_of(key: bytes, size: int) -> Path:
    """Return where an object would be shown if there were no others."""
    if is_marker(key, size):
        key = key.rstrip(b"/") or key
    names: list[bytes] = []
    slashes = b""
    parts = key.split(b"/")
    if not any(parts):
        return Path(_SLASH * (len(parts) - 1))
    for part in parts:
        if part:
            names.append(_name(slashes + _NOT_NAMES.get(part, part), key))
            slashes = b""
        else:
            slashes += _SLASH
    if slashes:
        names[-1] = _name(names[-1] + slashes, key)
    return Path(b"/".join(names))


def _name(name: bytes, key: bytes) -> bytes:
    name = name.replace(b"\0", b"%00")
    if len(name) <= NAME_MAX:
        return name
    digest = sha256(key).hexdigest()[:_HEX].encode()
    mark = "…".encode() + digest
    kept = name[: NAME_MAX - len(mark)].decode(errors="ignore").encode()
    return kept + mark


def place(found: Mapping[bytes, int], known: Mapping[bytes, Path]) -> dict[bytes, Path]:
    """Return where objects are to be shown that are new, or that must give way to a directory.

    Args:
        found: The keys that there are, and the sizes of the objects.
        known: Where some of them are shown already.
    """
    paths = {key: known.get(key) or path_of(key, size) for key, size in found.items()}
    markers = {key for key, size in found.items() if is_marker(key, size)}
    directories = set(_directories(paths.values()))
    directories.update(paths[key] for key in markers)
    taken = set(directories)
    placed: dict[bytes, Path] = {}
    # Those that are shown already stay where they are, if they can.
    for key in sorted(paths, key=lambda key: (key not in known, key)):
        path = paths[key]
        if key in markers:
            placed[key] = path
            continue
        if path in directories:
            path = beside(path, OBJECT)
        path = free(path, taken)
        taken.add(path)
        if known.get(key) != path:
            placed[key] = path
    return {key: path for key, path in placed.items() if known.get(key) != path}


def beside(path: Path, mark: bytes) -> Path:
    """Return the path of something that stands beside what is at a path."""
    directory, slash, name = path.rpartition(b"/")
    kept = name[: NAME_MAX - len(mark)]
    if len(kept) < len(name):
        kept = kept.decode(errors="ignore").encode()
    return Path(directory + slash + kept + mark)


def free(path: Path, taken: Container[bytes]) -> Path:
    """Return a path, or the same with a number if it is taken."""
    if path not in taken:
        return path
    numbered = (beside(path, b" %d" % number) for number in itertools.count(2))
    return next(each for each in numbered if each not in taken)


def _directories(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield every directory that something is in, some more than once."""
    for path in paths:
        at = path.find(b"/")
        while at >= 0:
            yield Path(path[:at])
            at = path.find(b"/", at + 1)
