"""The exit codes of ``nexus-ctl``, and the one table from engine errors to them.

====  ==========================================================================
code  meaning
====  ==========================================================================
0     done
1     not done: the line on stderr says why
2     usage: no such command, option or moment, a malformed argument
3     ``undo``, ``redo``, ``workspace apply``: done, but for conflicts that
      were left alone
4     damage: ``fsck`` found problems (as fsck(8)), the log's chain is broken,
      stored bytes are not what they were
5     not allowed
6     the store is missing, unreadable, in the way or of another version
7     not now: busy or full; the same command may succeed later
8     ``fsck`` could not run (as fsck(8))
9     unmounted, but not all that was written is in the log or on the disk
====  ==========================================================================
"""

from __future__ import annotations

from nexus_engine import errors
from nexus_engine.commands import Reply, Request

OK = 0
FAILED = 1
USAGE = 2
CONFLICTS = 3
DAMAGE = 4
FORBIDDEN = 5
STORE_UNUSABLE = 6
TRY_AGAIN = 7
FSCK_FAILED = 8
UNFINISHED = 9

EXIT_CODE: dict[type[errors.EngineError], int] = {
    errors.NotFound: FAILED,
    errors.NotADirectory: FAILED,
    errors.IsADirectory: FAILED,
    errors.AlreadyExists: FAILED,
    errors.DirectoryNotEmpty: FAILED,
    errors.NameTooLong: USAGE,
    errors.InvalidName: USAGE,
    errors.InvalidArgument: USAGE,
    errors.TooManyLinks: FAILED,
    errors.StaleInode: FAILED,
    errors.InUse: FAILED,
    errors.PermissionDenied: FORBIDDEN,
    errors.OperationNotPermitted: FORBIDDEN,
    errors.ReadOnly: FORBIDDEN,
    errors.NoSpace: TRY_AGAIN,
    errors.QuotaExceeded: TRY_AGAIN,
    errors.FileTooBig: FAILED,
    errors.NotSupported: FAILED,
    errors.TooManyMoments: TRY_AGAIN,
    errors.TooManyOpenFiles: TRY_AGAIN,
    errors.StoreBusy: TRY_AGAIN,
    errors.Interrupted: TRY_AGAIN,
    errors.NoXattr: FAILED,
    errors.XattrTooBig: FAILED,
    errors.TooManyXattrs: FAILED,
    errors.InvalidMoment: USAGE,
    errors.InvalidSelector: USAGE,
    errors.InvalidCommand: USAGE,
    errors.NothingToUndo: FAILED,
    errors.HistoryExpired: FAILED,
    errors.UndoConflict: CONFLICTS,
    errors.CorruptChunk: DAMAGE,
    errors.MissingChunk: DAMAGE,
    errors.CorruptMetadata: DAMAGE,
    errors.BrokenChain: DAMAGE,
    errors.StoreNotFound: STORE_UNUSABLE,
    errors.StoreExists: STORE_UNUSABLE,
    errors.StoreInaccessible: STORE_UNUSABLE,
    errors.StoreVersion: STORE_UNUSABLE,
    errors.ObjectNotFound: STORE_UNUSABLE,
    errors.ObjectChanged: FAILED,
    errors.ObjectStoreFailed: TRY_AGAIN,
    errors.StoreHung: TRY_AGAIN,
    errors.MetadataFailed: TRY_AGAIN,
    errors.Unfinished: UNFINISHED,
}


def code_of_error(error: errors.EngineError, verb: str | None) -> int:
    """Return the exit code for a command that failed.

    Args:
        verb: What was asked; fsck(8) has a code of its own for a check that could not run.
    """
    code = EXIT_CODE.get(type(error), FAILED)
    return FSCK_FAILED if verb in ("fsck", "repair") and code not in (USAGE, DAMAGE) else code


def code_of_reply(request: Request, reply: Reply) -> int:
    """Return the exit code for a command that was carried out."""
    if request.verb in ("undo", "redo", "workspace-apply") and reply["conflicts"]:
        return CONFLICTS
    source = reply.get("source") if request.verb == "workspace-apply" else None
    if source and (source["waiting"] or source["conflicts"]):
        return CONFLICTS
    if request.verb in ("fsck", "repair", "verify-log") and reply["problems"]:
        return DAMAGE
    return OK
