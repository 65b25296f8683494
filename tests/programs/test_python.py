"""Python's own tests of files.

One that fails on the disk below as well says nothing about the mount.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.programs.programs import as_root, identity

QUICK = """
    test_fcntl test_file test_fileio test_mailbox test_mmap test_os test_posix test_shutil
    test_tempfile test_zipfile
""".split()
LENGTHY = """
    *many_open_files *fd_leak *TestArchives* *SpawnTests* *ForkTests* *Decryption* *AbstractTest*
    *TestTemporaryDirectory* *TestMH* *TestMMDF* *TestBabyl* *Bzip2* *Deflate* *Lzma* *Zip64*
    *PosixSpawn* *Random* *MultipleOpens* *StoredTests* *CommandLine* *TestPath* *PyZipFile*
""".split()
ALL = [
    *QUICK,
    *"""
    test_bz2 test_compileall test_dbm_dumb test_filecmp test_fileinput test_genericpath test_glob
    test_gzip test_import test_io test_largefile test_logging test_pathlib test_posixpath
    test_py_compile test_shelve test_sqlite3 test_stat test_tarfile test_venv test_zipimport
    """.split(),
]
SETTLED = ("failure", "error", "skipped")


def interpreter(user: str | None = None) -> str:
    """Return a Python that has its own tests, and that the user may run."""
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        trial = (
            "import sys; from importlib.util import find_spec as f; sys.exit(not f('test.test_os'))"
        )
        command = [path, "-c", trial]
        try:
            done = subprocess.run(
                command, cwd="/", capture_output=True, check=False, **identity(user)
            )
        except OSError:
            continue
        if done.returncode == 0:
            return str(path)
    pytest.skip("no Python has its tests: apt-get install libpython3-testsuite")


def outcomes(
    directory: Path, modules: list[str], *options: str, user: str | None = None
) -> dict[str, str]:
    """Run Python's tests in a directory; return what became of each.

    Source: the documentation of the module ``test``.
    """
    directory.mkdir()
    directory.chmod(0o777)
    report = directory / "report.xml"
    command = [interpreter(user), "-m", "test", "--tempdir", str(directory)]
    done = subprocess.run(
        [*command, "--junit-xml", str(report), *options, *modules],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(directory), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
        **identity(user),
    )
    assert report.exists(), done.stdout + done.stderr
    return {
        case.get("name", ""): next((kind for kind in SETTLED if case.find(kind) is not None), "ok")
        for case in ElementTree.parse(report).iter("testcase")
    }


@pytest.mark.parametrize("module", QUICK)
def test_pythons_own_tests_pass(place: Path, tmp_path: Path, module: str) -> None:
    """Its tests of temporary files, copies, mappings, locks, descriptors, archives, mailboxes."""
    ignored = [option for pattern in LENGTHY for option in ("-i", pattern)]
    found = outcomes(place / "py", [module], *ignored)
    if not set(found.values()) <= {"ok", "skipped"}:
        require_no_worse(found, outcomes(tmp_path / "py", [module], *ignored))


@pytest.mark.slow
@pytest.mark.timeout(3200)
@pytest.mark.parametrize("user", [None, pytest.param("nobody", marks=as_root)])
def test_all_of_pythons_own_tests_of_files_end_as_on_the_disk(
    open_mount: Mount, user: str | None
) -> None:
    """As root and as somebody who may do less; what is skipped there is skipped here only."""
    options = () if user else ("-u", "largefile")
    found = outcomes(open_mount.path / "py", ALL, *options, user=user)
    plain = open_mount.path.parent / "py"
    require_no_worse(found, outcomes(plain, ALL, *options, user=user))


def require_no_worse(found: dict[str, str], expected: dict[str, str]) -> None:
    """Each of Python's tests ended on the mount as it did on the disk below, or better."""
    assert len(found) > 5
    worse = {
        name: f"{end}, not {expected[name]}"
        for name, end in found.items()
        if end not in ("ok", expected.get(name, end))
    }
    assert worse == {}
