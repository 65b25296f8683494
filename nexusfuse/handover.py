"""Take the place of a dead mount without a gap.

Between unmounting the old and mounting the new, programs would see the directory beneath, and what
they wrote into it would be hidden from then on. So the new mount is put beneath the old one, which
is then taken away. For root, since Linux 6.5.

Source: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), as far as there are pages for them;
``include/uapi/linux/mount.h``.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# The same on every architecture.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_AT_FDCWD = -100
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_ATTRIBUTES = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}
_EMPTY_PATH, _BENEATH = 0x4, 0x200
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def take_place(mountpoint: Path, source: str, options: set[str]) -> int:
    """Mount in place of the topmost mount on a path.

    Args:
        source: What mountinfo shows as the source.
        options: As libfuse takes them, without fsname and subtype.

    Returns:
        The descriptor of ``/dev/fuse`` to serve; the mount is the one that programs see.

    Raises:
        OSError: Not permitted, or not with this kernel; nothing happened.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _put_beneath(device, mountpoint, source, options)
        _require(_libc.umount2(os.fsencode(mountpoint), MNT_DETACH))
    except OSError:
        os.close(device)  # what was put beneath, if anything, is dead then as well
        raise
    return device


def _put_beneath(device: int, mountpoint: Path, source: str, options: set[str]) -> None:
    context = _syscall(_FSOPEN, b"fuse", _CLOEXEC)
    try:
        for key, value in (
            ("source", source),
            ("subtype", "nexus"),
            ("fd", str(device)),
            ("rootmode", "40000"),
            ("user_id", str(os.getuid())),
            ("group_id", str(os.getgid())),
        ):
            _syscall(_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(value), 0)
        for flag in options & {"allow_other", "default_permissions", "ro", "sync", "dirsync"}:
            _syscall(_FSCONFIG, context, _SET_FLAG, flag.encode(), None, 0)
        _syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        attributes = {"nosuid", "nodev"} - {f"no{option}" for option in options}
        attributes |= options & _ATTRIBUTES.keys()
        flags = sum(_ATTRIBUTES[name] for name in attributes)
        mount = _syscall(_FSMOUNT, context, _CLOEXEC, flags)
    finally:
        os.close(context)
    try:
        target = os.fsencode(mountpoint)
        _syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, target, _EMPTY_PATH | _BENEATH)
    finally:
        os.close(mount)


def detach(mountpoint: Path) -> None:
    """Unmount lazily.

    Raises:
        OSError: Not permitted, or not mounted.
    """
    _require(_libc.umount2(os.fsencode(mountpoint), MNT_DETACH))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _require(_libc.syscall(ctypes.c_long(number), *words))


def _require(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
