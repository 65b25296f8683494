"""The work: what is prepared, what is timed, what must be true afterwards."""

from benchlib.work.base import FULL, QUICK, Place, Scale, VerificationFailed, Workload
from benchlib.work.databases import SqliteRollback, SqliteWal
from benchlib.work.directories import ListDirectory, ListDirectoryCold, Mkdir, Rmdir
from benchlib.work.past import ReadPast, UndoDeletes, UndoOne
from benchlib.work.small_files import (
    Create,
    CreateTogether,
    OpenRead,
    OpenReadCold,
    Overwrite,
    Rename,
    Stat,
    StatCold,
    Unlink,
)
from benchlib.work.streams import (
    AppendSync,
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialReadCold,
    SequentialWrite,
    SequentialWriteDuplicate,
)
from benchlib.work.trees import (
    CopyTree,
    FindTree,
    FindTreeCold,
    GitCommit,
    GitStatus,
    GrepTree,
    GrepTreeCold,
    RemoveTree,
    Untar,
)

__all__ = [
    "FULL",
    "QUICK",
    "WORKLOADS",
    "Place",
    "Scale",
    "VerificationFailed",
    "Workload",
]

WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload
    for workload in (
        Create,
        CreateTogether,
        Stat,
        StatCold,
        OpenRead,
        OpenReadCold,
        Overwrite,
        Rename,
        Unlink,
        Mkdir,
        Rmdir,
        ListDirectory,
        ListDirectoryCold,
        SequentialWrite,
        SequentialWriteDuplicate,
        SequentialRead,
        SequentialReadCold,
        RandomRead,
        RandomWrite,
        AppendSync,
        Untar,
        CopyTree,
        FindTree,
        FindTreeCold,
        GrepTree,
        GrepTreeCold,
        GitCommit,
        GitStatus,
        RemoveTree,
        SqliteRollback,
        SqliteWal,
        ReadPast,
        UndoOne,
        UndoDeletes,
    )
}
