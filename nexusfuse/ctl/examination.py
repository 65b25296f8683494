"""Which checks are made of a machine, of a mount, of a store."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from nexus_engine import __version__
from nexusfuse.ctl import (
    attachment_troubles,
    bucket_troubles,
    launch,
    mounts,
    preconditions,
    store_troubles,
    troubles,
)
from nexusfuse.ctl.checking import mount_status
from nexusfuse.ctl.mounts import Mount
from nexusfuse.ctl.troubles import Finding

SQLITE_PACKAGE = "apsw"


def versions() -> dict[str, str]:
    """Return the versions of what we depend on."""
    found = {"nexus": __version__, "python": platform.python_version(), "linux": os.uname().release}
    for package in (SQLITE_PACKAGE, "pyfuse3", "trio"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    program = shutil.which("fusermount3")
    if program is not None:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        found["fuse"] = done.stdout.rpartition(" ")[2].strip()
    # Its first three numbers are SQLite's.
    found["sqlite"] = ".".join(found[SQLITE_PACKAGE].split(".")[:3])
    return found


def of_machine() -> Iterator[Finding]:
    """Look at what every mount needs."""
    uid = os.geteuid()
    yield from troubles.check_device()
    yield from troubles.check_fusermount(shutil.which("fusermount3"), uid=uid)
    yield from troubles.check_fuse_conf(preconditions.FUSE_CONF, uid=uid)
    try:
        requirements = importlib.metadata.requires("nexusfs") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []  # run from a directory, without having been installed
    yield from troubles.check_versions(requirements, importlib.metadata.version)


def of_mount(mount: Mount, limit_s: float) -> Iterator[Finding]:
    """Look at a mount and at its daemon."""
    found = list(troubles.check_answers(mount, limit_s))
    yield from found
    if found:
        return
    try:
        status = mount_status(mount.path)
    except OSError:
        return  # somebody else's, which we may not enter
    yield from troubles.check_daemon(mount, status)


def of_store(store: Path, limit_s: float) -> Iterator[Finding]:
    """Look at a store and at the disk that it lies on."""
    found = list(store_troubles.check_disk(store, limit_s))
    yield from found
    if found:
        return  # whoever looks on waits for it
    store = store.resolve()
    yield from store_troubles.check_owner(store, uid=os.geteuid())
    yield from store_troubles.check_database(store, now_ns=time.time_ns())
    if not store.is_dir():
        return
    yield from store_troubles.check_filesystem(store, mounts.mount_of(os.fsencode(store)))
    yield from store_troubles.check_space(store, os.statvfs(store))
    yield from bucket_troubles.check_bucket(store, limit_s)
    yield from attachment_troubles.check_attachments(store)
    yield from store_troubles.check_owners(store / "peers")
    yield from store_troubles.check_wal(store)
    yield from store_troubles.check_log(store / launch.LOG_NAME, now_s=time.time())
