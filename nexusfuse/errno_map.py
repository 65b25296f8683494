"""The one place where an engine error becomes an errno, and a bug becomes EIO."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from nexus_engine import errors
from nexus_engine.meta.connection import GARBAGE

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

ERRNO: dict[type[errors.EngineError], int] = {
    errors.NotFound: errno.ENOENT,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.AlreadyExists: errno.EEXIST,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.InvalidName: errno.EINVAL,
    errors.InvalidArgument: errno.EINVAL,
    errors.TooManyLinks: errno.EMLINK,
    errors.StaleInode: errno.ESTALE,
    errors.InUse: errno.EBUSY,
    errors.PermissionDenied: errno.EACCES,
    errors.OperationNotPermitted: errno.EPERM,
    errors.ReadOnly: errno.EROFS,
    errors.NoSpace: errno.ENOSPC,
    errors.QuotaExceeded: errno.EDQUOT,
    errors.FileTooBig: errno.EFBIG,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.TooManyMoments: errno.ENFILE,
    errors.TooManyOpenFiles: errno.EMFILE,
    errors.StoreBusy: errno.EAGAIN,
    errors.NoXattr: errno.ENODATA,
    errors.XattrTooBig: errno.E2BIG,
    errors.TooManyXattrs: errno.ENOSPC,
    errors.InvalidMoment: errno.ENOENT,
    errors.InvalidSelector: errno.EINVAL,
    errors.InvalidCommand: errno.EINVAL,
    errors.NothingToUndo: errno.ENOENT,
    errors.HistoryExpired: errno.ENOENT,
    errors.UndoConflict: errno.EBUSY,
    errors.CorruptChunk: errno.EIO,
    errors.MissingChunk: errno.EIO,
    errors.CorruptMetadata: errno.EIO,
    errors.BrokenChain: errno.EIO,
    errors.StoreNotFound: errno.ENOENT,
    errors.StoreExists: errno.EEXIST,
    errors.StoreInaccessible: errno.EIO,
    errors.StoreVersion: errno.EIO,
    errors.ObjectNotFound: errno.EIO,
    errors.ObjectChanged: errno.ESTALE,
    errors.ObjectStoreFailed: errno.EIO,
    errors.StoreHung: errno.ETIMEDOUT,
    errors.Interrupted: errno.EINTR,
    errors.MetadataFailed: errno.EIO,
    errors.Unfinished: errno.EIO,
}

_WORTH_A_LINE = (errors.IntegrityError, errors.BackendError, errors.NoSpace)
_SAID_ONCE = errors.StoreHung
"""The disk says it, once, and not each of the requests that fail while it hangs."""


class Serving(Protocol):
    """Whoever serves requests."""

    requests: Counter[str]
    """By name, for ``.nexus/status``."""
    under_way: int
    """Not answered yet."""

    async def find_damage(
        self, request: str, arguments: dict[str, Any]
    ) -> errors.CorruptMetadata | None:
        """Return what is damaged of what a request was about; ``None`` if nothing is."""
        ...


S = TypeVar("S", bound=Serving)


def fuse_request(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a method a FUSE request handler.

    An exception other than ``FUSEError`` that escapes a handler would end pyfuse3's main loop and
    strand every program that uses the mount.
    """
    name = handler.__name__
    names = list(inspect.signature(handler).parameters)[1:]

    async def request(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests[name] += 1
        self.under_way += 1
        try:
            return await handler(self, *args, **kwargs)
        except errors.EngineError as error:
            if isinstance(error, _WORTH_A_LINE) and not isinstance(error, _SAID_ONCE):
                log.error("%s%s: %s", name, _numbers(args), error)
            raise pyfuse3.FUSEError(ERRNO[type(error)]) from error
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            if isinstance(error, GARBAGE):
                damage = await self.find_damage(name, dict(zip(names, args, strict=False)))
                if damage is not None:
                    log.error("%s%s: %s", name, _numbers(args), damage)
                    raise pyfuse3.FUSEError(ERRNO[type(damage)]) from error
            log.exception("%s%s failed: a bug; the caller gets EIO", name, _numbers(args))
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            self.under_way -= 1

    return functools.update_wrapper(request, handler)


def _numbers(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Show what identifies a request, not its data."""
    return tuple(a if isinstance(a, int) else "…" for a in args)
