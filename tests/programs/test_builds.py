"""gcc and make: what is up to date stays so, what changed is made anew, nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.programs.programs import TIMEOUT_S, needs, run, sh

pytestmark = [needs("gcc", "gcc"), needs("make", "make")]

UNITS = 8
MAKEFILE = """\
objects := $(patsubst src/%.c,out/%.o,$(wildcard src/*.c))
program: out/main.o out/libunits.a
\tgcc -o $@ $^
out/libunits.a: $(filter-out out/main.o,$(objects))
\trm -f $@
\tar rcs $@ $^
out/%.o: src/%.c | out
\tgcc -O0 -MMD -MP -c -o $@ $<
out:
\tmkdir $@
-include $(objects:.o=.d)
"""


@pytest.fixture
def project(place: Path) -> Path:
    """Return a C program of some units, each with a header of its own."""
    source = place / "src"
    source.mkdir()
    for number in range(UNITS):
        (source / f"unit{number}.h").write_text(f"int unit{number}(void);\n")
        (source / f"unit{number}.c").write_text(
            f'#include "unit{number}.h"\nint unit{number}(void) {{ return {number}; }}\n'
        )
    includes = "".join(f'#include "unit{number}.h"\n' for number in range(UNITS))
    total = " + ".join(f"unit{number}()" for number in range(UNITS))
    main = (
        f'{includes}#include <stdio.h>\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    (source / "main.c").write_text(main)
    (place / "Makefile").write_text(MAKEFILE)
    return place


def make(project: Path) -> list[str]:
    """Run make(1); return what it compiled."""
    return re.findall(r"-c -o \S+ src/(\w+)\.c", run("make", "-j2", cwd=project))


def test_make_builds_what_changed_and_nothing_else(project: Path, shared_mount: Mount) -> None:
    """make(1) compares mtimes; gcc(1) writes objects and dependencies, ar(1) the library."""
    assert len(make(project)) == UNITS + 1
    assert run("./program", cwd=project) == f"{sum(range(UNITS))}\n"
    assert make(project) == []
    shared_mount.remount()
    assert make(project) == []
    (project / "src/unit3.c").touch()
    assert make(project) == ["unit3"]
    (project / "src/unit5.h").touch()
    assert sorted(make(project)) == ["main", "unit5"]
    source = project / "src/unit7.c"
    source.write_text(source.read_text().replace("return 7", "return 1007"))
    assert make(project) == ["unit7"]
    assert run("./program", cwd=project) == f"{sum(range(UNITS)) + 1000}\n"
    sh("rm -r out", project)
    assert len(make(project)) == UNITS + 1


def test_an_undone_build_is_built_again(project: Path, shared_mount: Mount) -> None:
    """What an agent built is gone with its undo; the sources are as they were."""
    run("make", "-j2", cwd=project, env={"NEXUS_AGENT": "builder"})
    assert (project / "program").exists()
    shared_mount.ctl("undo", "--agent", "builder")
    assert sorted(os.listdir(project)) == ["Makefile", "src"]
    assert len(make(project)) == UNITS + 1
    assert run("./program", cwd=project) == f"{sum(range(UNITS))}\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_package_builds_from_source(place: Path, tmp_path: Path) -> None:
    """zstandard, whose source has the C library in it: unpacked, compiled, linked, imported."""
    fetch = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--no-binary=:all:"]
    fetch += ["--no-build-isolation", "-d", str(tmp_path), "zstandard"]
    if subprocess.run(fetch, check=False, timeout=TIMEOUT_S).returncode != 0:
        pytest.skip("no package index to get the source from")
    (archive,) = tmp_path.glob("zstandard-*.tar.gz")
    run("tar", "xf", archive, "--strip-components=1", cwd=place)
    assert sum(path.stat().st_size for path in place.rglob("*.[ch]")) > 1_000_000
    build = ["setup.py", "-q", "build_ext", "--inplace", "--build-temp", "out"]
    run(sys.executable, *build, cwd=place, timeout_s=800)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert list((place / "zstandard").glob(f"*{suffix}"))
    trial = "import zstandard as z; print(z.__file__, z.decompress(z.compress(b'x')))"
    printed = run(sys.executable, "-c", trial, cwd=place)
    assert printed == f"{place}/zstandard/__init__.py b'x'\n"
