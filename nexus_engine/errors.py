"""Expected failures.

::

    EngineError
    ├── NamespaceError   NotFound NotADirectory IsADirectory AlreadyExists DirectoryNotEmpty
    │                    NameTooLong InvalidName InvalidArgument TooManyLinks StaleInode InUse
    ├── AccessError      PermissionDenied OperationNotPermitted ReadOnly
    ├── ResourceError    NoSpace QuotaExceeded FileTooBig NotSupported TooManyMoments
    │                    StoreBusy NoXattr XattrTooBig TooManyXattrs Interrupted
    ├── ConflictError    InvalidMoment InvalidSelector InvalidCommand NothingToUndo HistoryExpired
    │                    UndoConflict
    ├── IntegrityError   CorruptChunk MissingChunk CorruptMetadata BrokenChain
    └── BackendError     StoreNotFound StoreExists StoreInaccessible StoreVersion ObjectNotFound
                         ObjectChanged ObjectStoreFailed StoreHung MetadataFailed

The leaves carry values; ``str(error)`` is the one line a person reads. What is not an
``EngineError`` is a bug.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every expected failure."""

    transient = False
    """A retry of the same call may succeed."""


class NamespaceError(EngineError):
    """The tree does not allow it."""


class AccessError(EngineError):
    """The actor may not."""


class ResourceError(EngineError):
    """Something has run out, or is not to be had."""


class ConflictError(EngineError):
    """What was asked for does not fit what is there."""


class IntegrityError(EngineError):
    """Stored bytes are not what they were."""


class BackendError(EngineError):
    """The store cannot be reached or used."""


class NotFound(NamespaceError):
    pass


class NotADirectory(NamespaceError):
    pass


class IsADirectory(NamespaceError):
    pass


class AlreadyExists(NamespaceError):
    pass


class DirectoryNotEmpty(NamespaceError):
    pass


class NameTooLong(NamespaceError):
    pass


class InvalidName(NamespaceError):
    pass


class InvalidArgument(NamespaceError):
    pass


class TooManyLinks(NamespaceError):
    pass


class StaleInode(NamespaceError):
    pass


class InUse(NamespaceError):
    """A directory that is more than a directory, and stays where it is."""


class PermissionDenied(AccessError):
    pass


class OperationNotPermitted(AccessError):
    pass


class ReadOnly(AccessError):
    pass


class NoSpace(ResourceError):
    transient = True


class QuotaExceeded(ResourceError):
    pass


class FileTooBig(ResourceError):
    pass


class NotSupported(ResourceError):
    pass


class TooManyMoments(ResourceError):
    pass


class TooManyOpenFiles(ResourceError):
    pass


class StoreBusy(ResourceError):
    transient = True


class NoXattr(ResourceError):
    pass


class XattrTooBig(ResourceError):
    pass


class TooManyXattrs(ResourceError):
    """listxattr(2) has no room for one more name."""


class Interrupted(ResourceError):
    """Long work was told to stop; what it had not committed is rolled back."""


class InvalidMoment(ConflictError):
    pass


class InvalidSelector(ConflictError):
    pass


class InvalidCommand(ConflictError):
    pass


class NothingToUndo(ConflictError):
    pass


class HistoryExpired(ConflictError):
    pass


class UndoConflict(ConflictError):
    pass


class CorruptChunk(IntegrityError):
    pass


class MissingChunk(IntegrityError):
    pass


class CorruptMetadata(IntegrityError):
    pass


class BrokenChain(IntegrityError):
    pass


class StoreNotFound(BackendError):
    pass


class StoreExists(BackendError):
    pass


class StoreInaccessible(BackendError):
    pass


class StoreVersion(BackendError):
    pass


class ObjectNotFound(BackendError):
    pass


class ObjectChanged(BackendError):
    """It is not the version that was meant: somebody else wrote it."""


class ObjectStoreFailed(BackendError):
    transient = True


class StoreHung(BackendError):
    """Its disk did not answer in time; nobody knows what became of the request."""

    transient = True


class MetadataFailed(BackendError):
    transient = True


class Unfinished(BackendError):
    """A process ended, and not everything that it was given is in order."""
