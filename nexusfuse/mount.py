"""pyfuse3: options, mounting, unmounting."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from pathlib import Path

import msgspec
import pyfuse3

from nexus_engine import errors
from nexusfuse import handover
from nexusfuse.ctl.mounts import device_at
from nexusfuse.ctl.supervisor import devices_at

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024


class MountOptions(msgspec.Struct, frozen=True):
    """What a mount can be told."""

    allow_other: bool = False
    """Users other than the mounting one may enter."""
    read_only: bool = False
    noatime: bool = False
    """Reading leaves atimes alone."""
    kernel: tuple[str, ...] = ()
    """What the kernel sees to by itself: nosuid, nodev, noexec, sync, dirsync."""
    source: str = ""
    """What lists of mounts show."""
    hold: bool = False
    """When told to end, leave the mount, dead, to the next daemon."""
    debug: bool = False
    log_file: Path | None = None


def fuse_options(store: Path, options: MountOptions) -> set[str]:
    """Return the options as libfuse takes them, but for what names the mount."""
    chosen = {"default_permissions"}
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    if options.debug:
        chosen.add("debug")
    if os.geteuid() == 0 == store.stat().st_uid:
        # As for a disk of root's. In a store of somebody else, the bits are theirs to forge.
        chosen |= {"suid", "dev"} - {option.removeprefix("no") for option in options.kernel}
    return chosen | set(options.kernel)


class Mounted:
    """A mount whose requests we get; they wait until ``pyfuse3.main`` runs."""

    def __init__(
        self, operations: pyfuse3.Operations, mountpoint: Path, store: Path, options: MountOptions
    ) -> None:
        self._mountpoint = mountpoint
        self._arguments = operations, options.source, fuse_options(store, options)
        self._by_us = False
        self.device = ""
        """Its number, as in mountinfo."""

    def mount(self) -> None:
        """Mount on a mountpoint that is free.

        Raises:
            StoreInaccessible: The kernel or fusermount3 refused; libfuse said why on stderr.
        """
        self._init(str(self._mountpoint))

    def take_place(self) -> bool:
        """Mount in place of a dead mount, without a gap; whether that is possible here."""
        _, source, options = self._arguments
        try:
            fd = handover.take_place(self._mountpoint, source, options)
        except OSError as error:
            log.debug("programs may see the directory beneath for a moment: %s", error)
            return False
        log.info("took the place of a dead mount")
        self._by_us = True
        self._init(f"/dev/fd/{fd}")
        return True

    def _init(self, place: str) -> None:
        operations, source, options = self._arguments
        name = re.sub(r"([\\,])", r"\\\1", source)
        try:
            pyfuse3.init(operations, place, {*options, f"fsname={name}", "subtype=nexus"})
        except RuntimeError as error:
            raise errors.StoreInaccessible(
                f"cannot mount on {self._mountpoint}: {error}"
            ) from error
        self.device = device_at(os.fsencode(self._mountpoint))

    def is_there(self) -> bool:
        return self.device in devices_at(os.fsencode(self._mountpoint))

    def close(self, *, unmount: bool) -> None:
        """Let go of the kernel's requests; what waits for an answer gets an error."""
        if unmount and self._by_us and device_at(os.fsencode(self._mountpoint)) == self.device:
            handover.detach(self._mountpoint)  # libfuse does not know of it
        pyfuse3.close(unmount=unmount)


def raise_read_ahead(device: int) -> None:
    """Ask the kernel for larger reads, where permitted: 1 MiB a request instead of 128 KiB.

    Args:
        device: ``st_dev`` of the mount.
    """
    path = Path(f"/sys/class/bdi/{device >> 8 & 0xFFF}:{device & 0xFF}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        log.debug("read-ahead stays as it is: %s", error)


def write_back(mountpoint: Path) -> None:
    """Have the kernel hand over what programs changed through mmap; from a thread.

    Source: syncfs(2).
    """
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.warning("what was mapped and not synced may be lost: %s", error)
        return
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)
