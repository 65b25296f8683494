"""What must hold before a daemon mounts: the device, the mountpoint, the store."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
from pathlib import Path

import click

from nexus_engine import errors
from nexusfuse.ctl import mounts
from nexusfuse.ctl.exit_codes import STORE_UNUSABLE
from nexusfuse.ctl.mounts import Health, Mount
from nexusfuse.ctl.place import Failure, own_actor
from nexusfuse.ctl.wanted import Wanted

log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")


def require_places(wanted: Wanted) -> Mount | None:
    """Check mountpoint and store; return the dead mount that is in the way, if any."""
    dead = find_dead(wanted)
    if dead is None:
        _require_mountpoint(wanted)
    _require_apart(wanted)
    return dead


class Mountpoint:
    """A mountpoint on which a daemon is about to mount."""

    def __init__(self, wanted: Wanted, dead: str, *, replaces: bool) -> None:
        """
        Args:
            dead: The device number of the dead mount that is there; empty if there is none.
            replaces: Only mount if that is still there.
        """
        self._wanted = wanted
        self._dead = dead
        self._replaces = replaces

    def is_wanted(self) -> bool:
        return not self._replaces or self.is_taken()

    def is_taken(self) -> bool:
        return self._dead != "" and self._device() == self._dead

    def free(self) -> None:
        """See to it that the mountpoint is free.

        Raises:
            Failure: It cannot be.
        """
        wanted = self._wanted
        if self.is_taken():
            log.info("freeing %s: the daemon that served it is dead", wanted.mountpoint)
            reason = detach(wanted.mountpoint, lazy=True)
            if reason is not None:
                raise Failure(f"cannot free {wanted.mountpoint}: {reason}")
            # What was written into it between two daemons must not keep the second from serving.
            wanted = wanted._replace(nonempty=True)
        hidden = _require_mountpoint(wanted)
        if hidden is not None:
            log.error("%s is not empty: %s is hidden as long as it is mounted", *hidden)

    def _device(self) -> str:
        return mounts.device_at(os.fsencode(self._wanted.mountpoint))


def require_fuse(wanted: Wanted) -> None:
    try:
        is_device = stat.S_ISCHR(DEVICE.stat().st_mode)
    except FileNotFoundError:
        is_device = False
    if not is_device:
        raise Failure(
            f"there is no {DEVICE}: load the module with `modprobe fuse` as root, or give the"
            " container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if os.geteuid() == 0:
        return
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise Failure(
            f"no permission to open {DEVICE}: have root run `chmod 666 {DEVICE}`, as udev does"
        )
    if shutil.which("fusermount3") is None:
        raise Failure("fusermount3 is missing: install it with `apt install fuse3`")
    if wanted.allow_other and not may_allow_other(FUSE_CONF):
        raise Failure(
            f"--allow-other is not permitted: have root add a line user_allow_other to {FUSE_CONF}"
        )


def may_allow_other(conf: Path) -> bool:
    """Return whether users may let others into their mounts."""
    try:
        lines = conf.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def find_dead(wanted: Wanted) -> Mount | None:
    """Return the mount of a dead daemon that is in the way, ``None`` if nothing is.

    Raises:
        Failure: The mountpoint is in use, or not ours to free.
    """
    mountpoint = wanted.mountpoint
    mount = mounts.mount_at(os.fsencode(mountpoint))
    if mount is None:
        return None
    health = mounts.probe(mount, mounts.ANSWER_LIMIT_S)
    if health is Health.SILENT:
        raise Failure(
            f"{mountpoint} is mounted and its daemon does not answer; `nexus-ctl umount --force"
            f" {mountpoint}` frees it"
        )
    dead = health is Health.DEAD
    if not mount.is_nexus:
        if dead:
            raise Failure(
                f"{mountpoint} is a dead mount of another filesystem ({os.fsdecode(mount.fstype)});"
                f" free it with `fusermount3 -u {mountpoint}`"
            )
        return None
    if not dead:
        if os.fsencode(wanted.store) == mount.store:
            raise Failure(f"already mounted: {mountpoint} shows {wanted.store}")
        raise Failure(
            f"{mountpoint} already shows another store, {os.fsdecode(mount.store)};"
            f" `nexus-ctl umount {mountpoint}` frees it"
        )
    if os.geteuid() not in (0, mount.owner):
        raise Failure(
            f"{mountpoint} is a dead mount of user {mount.owner}, who (or root) can free it with"
            f" `fusermount3 -u {mountpoint}`"
        )
    return mount


def detach(mountpoint: Path, *, lazy: bool) -> str | None:
    """Unmount.

    Returns:
        ``None``, or the line that says why it did not work.
    """
    if shutil.which("fusermount3") is not None:
        command = ["fusermount3", "-uz" if lazy else "-u"]
    elif os.geteuid() == 0:
        command = ["umount", "-i", *["-l"] * lazy]  # -i: not through our own umount.nexus
    else:
        raise Failure("fusermount3 is missing: install it with `apt install fuse3`")
    done = subprocess.run(
        [*command, "--", mountpoint], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="backslashreplace").strip().splitlines()
    return lines[-1] if lines else f"{command[0]} ended with {done.returncode}"


def _require_mountpoint(wanted: Wanted) -> tuple[Path, str] | None:
    """Return the mountpoint and something that is in it, if there is anything."""
    path = wanted.mountpoint
    try:
        with os.scandir(path) as entries:
            found = next(entries, None)
    except FileNotFoundError:
        raise Failure(f"{path} does not exist: make it with `mkdir -p {path}`") from None
    except NotADirectoryError:
        raise Failure(f"{path} is not a directory: mount on an empty directory") from None
    except PermissionError:
        raise Failure(f"no permission to look into {path}: mount on a directory of yours") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EIO):
            raise Failure(f"{path} does not answer: {error.strerror}") from None
        raise
    if found is not None and not wanted.nonempty:
        raise Failure(f"{path} is not empty: mount on an empty directory, nothing may be hidden")
    # Root may mount on a directory that nobody can write to (chattr +i), and had better.
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise Failure(f"no permission to write to {path}: mount on a directory of yours")
    return None if found is None else (path, found.name)


def _require_apart(wanted: Wanted) -> None:
    store, mountpoint = os.fsencode(wanted.store), os.fsencode(wanted.mountpoint)
    if mounts.is_within(store, mountpoint) or mounts.is_within(mountpoint, store):
        raise Failure(
            f"store and mountpoint must lie apart: {wanted.store} and {wanted.mountpoint};"
            " give --store DIR"
        )


def require_store(path: Path) -> None:
    """Open the store once, so that what is wrong with it is said here; make it if it is new."""
    from nexus_engine.placing import require_bucket
    from nexus_engine.store import Store

    try:
        store = Store.open(path)
    except errors.StoreNotFound:
        make_store(path)
        return
    try:
        require_bucket(store.reader)
    except (errors.StoreHung, errors.ObjectStoreFailed) as error:
        click.echo(
            f"nexus-ctl: {error}; mounting all the same: what is in the cache can be read, and what"
            " is written waits on this disk",
            err=True,
        )
    finally:
        store.close()


def make_store(path: Path, *, packs_url: str | None = None) -> None:
    """Make a store.

    Args:
        packs_url: The bucket, if any, that its packs live in.

    Raises:
        Failure: There is something else.
        StoreInaccessible: No permission, no space.
    """
    from nexus_engine.store import Store

    try:
        Store.create(path, own_actor(), packs_url=packs_url).close()
    except errors.StoreExists:
        raise Failure(
            f"{path} holds something else and no store: give --store an empty or new directory",
            STORE_UNUSABLE,
        ) from None
