"""pyfuse3: options, mounting, unmounting."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import pyfuse3

from nexus_engine import errors

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024


class MountOptions(msgspec.Struct, frozen=True):
    """What a mount can be told."""

    allow_other: bool = False
    """Users other than the mounting one may enter."""
    read_only: bool = False
    noatime: bool = False
    """Reading leaves atimes alone."""
    debug: bool = False
    log_file: Path | None = None


def fuse_options(store: Path, options: MountOptions) -> set[str]:
    """Return the options as libfuse takes them."""
    chosen = {"default_permissions", f"fsname=nexus:{store}", "subtype=nexus"}
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    if options.debug:
        chosen.add("debug")
    if os.geteuid() == 0 == store.stat().st_uid:
        # As for a disk of root's. In a store of somebody else, the bits are theirs to forge.
        chosen |= {"suid", "dev"}
    return chosen


def mount(operations: pyfuse3.Operations, mountpoint: Path, options: set[str]) -> None:
    """Mount; requests wait until ``pyfuse3.main`` runs.

    Raises:
        StoreInaccessible: The kernel or fusermount3 refused; libfuse said why on stderr.
    """
    try:
        pyfuse3.init(operations, str(mountpoint), options)
    except RuntimeError as error:
        raise errors.StoreInaccessible(f"cannot mount on {mountpoint}: {error}") from error


def raise_read_ahead(mountpoint: Path) -> None:
    """Ask the kernel for larger reads, where permitted: 1 MiB a request instead of 128 KiB."""
    device = mountpoint.stat().st_dev
    path = Path(f"/sys/class/bdi/{device >> 8 & 0xFFF}:{device & 0xFF}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        log.debug("read-ahead stays as it is: %s", error)
