"""What a mount is asked for, and the command line that asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

KERNEL_OPTIONS = ("nosuid", "nodev", "noexec", "sync", "dirsync")
"""What the kernel sees to by itself. Source: mount(8), filesystem-independent mount options."""
HANG_LIMIT_S = 60.0


class Wanted(NamedTuple):
    """What ``mount`` was asked for; paths absolute."""

    mountpoint: Path
    store: Path
    allow_other: bool = False
    read_only: bool = False
    noatime: bool = False
    kernel: tuple[str, ...] = ()
    """Of ``KERNEL_OPTIONS``."""
    debug: bool = False
    log_file: Path | None = None
    hang_limit_s: float = HANG_LIMIT_S
    """A daemon in the background is started again when it does not answer for so long."""
    restart: bool = True
    """A daemon in the background is started again when it dies."""
    source: str = ""
    """What lists of mounts show; fstab(5) compares it."""
    nonempty: bool = False
    """The mountpoint may hold something, which the mount hides."""
    hold: bool = False
    """A daemon that is told to end leaves its mount, dead, to the next one."""

    def arguments(self) -> list[str]:
        """Return the command line that asks for the same."""
        words = ["mount", "--foreground", "--store", str(self.store)]
        words += ["--allow-other"] * self.allow_other
        words += ["--read-only"] * self.read_only
        words += ["--noatime"] * self.noatime
        if self.kernel:
            words += ["--options", ",".join(self.kernel)]
        words += ["--source", self.source] * bool(self.source)
        words += ["--nonempty"] * self.nonempty
        words += ["--hold"] * self.hold
        words += ["--debug"] * self.debug
        if self.log_file is not None:
            words += ["--log-file", str(self.log_file)]
        return [*words, "--", str(self.mountpoint)]
