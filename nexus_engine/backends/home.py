"""The bucket that a store's packs live in: the right one, and not asked again while it is gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from nexus_engine import errors
from nexus_engine.backends.bucket import Bucket, Capability

R = TypeVar("R")

log = logging.getLogger(__name__)

MARK_KEY = "nexus-store.json"
_MARK_MAX = 4096
_CONDITIONS = Capability.CONDITIONAL_PUT | Capability.CONDITIONAL_PARTS
_SILENCE_S = 5.0
_TRY_S = 2.0
"""Between two attempts at a bucket that does not answer."""


class Mark(msgspec.Struct, frozen=True):
    """What a bucket's prefix says of itself."""

    nexus_store: int
    store_id: str
    holder: str
    """Which copy of the store's metadata goes with the packs: one that was made of it elsewhere
    takes its place."""
    conditional: bool | None = None
    """Whether the server keeps the conditions of every put, as was found when the prefix became a
    store's; ``None``: nobody tried."""


class Home:
    """Thread-safe.

    Args:
        url: For people.
        connect: Makes the bucket; called when it is first needed.
        mark: What the prefix must say.
    """

    def __init__(self, url: str, connect: Callable[[], Bucket], mark: Mark) -> None:
        self.url = url
        self._connect = connect
        self._mark = mark
        self.holder = mark.holder
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._bucket: Bucket | None = None
        self._unasked: Bucket | None = None
        """Of which it is not known whose it is."""
        self._conditional: bool | None = None
        self._trouble: errors.EngineError | None = None
        """Why it cannot be used."""
        self._silent_s: float | None = None
        """Since when."""
        self._next_try_s = 0.0
        self._answered_s = 0.0
        self._asked = 0
        self._marked_s = float("-inf")
        """When the mark was ours last."""
        self._trying = 0
        """The thread that tries now."""

    def ask(self, question: Callable[[Bucket], R]) -> R:
        """Return the bucket's answer.

        Raises:
            StoreHung: It does not answer; at once, where somebody else found so just now.
            StoreInaccessible: It may not be used, or is another store's; likewise.
            EngineError: Whatever else the question raises.
        """
        self._require_usable()
        self._asked += 1
        begun_s = time.monotonic()
        bucket = self._verified()
        try:
            answer = question(bucket)
        except (errors.ObjectNotFound, errors.StoreInaccessible):
            # Perhaps nothing of ours can be had there any more.
            self._confirm(bucket)
            raise
        except errors.EngineError as error:
            if _is_silence(error, begun_s):
                self._note_trouble(error, begun_s)
            else:
                self._note_answer()
            raise
        self._note_answer()
        return answer

    def prepare(self) -> None:
        """Load the SDK, which takes longer than what it is asked first. Asks nobody."""
        with self._connecting, suppress(errors.EngineError):  # whoever asks is told
            if self._bucket is None and self._unasked is None:
                self._unasked = self._connect()

    def require_mark(self, *, within_s: float = 0.0) -> None:
        """Make sure that the prefix is still ours.

        Args:
            within_s: To have made sure so long ago is enough.

        Raises:
            EngineError: As `ask`.
        """
        if time.monotonic() - self._marked_s >= within_s:
            self.ask(self._confirm)

    def is_conditional(self) -> bool:
        """Tell whether the server keeps the conditions of every put; asks it once, at most.

        Raises:
            EngineError: As `ask`.
        """
        if self._conditional is None:
            self.require_mark(within_s=float("inf"))
            known = self._mark.conditional
            capabilities = _CONDITIONS if known else self.ask(lambda bucket: bucket.probe())
            if Capability.CONDITIONAL_PUT not in capabilities:
                log.warning(
                    "%s does not know conditional writes: before each pack it is asked whether the"
                    " pack is there; a second store on the same prefix might go unnoticed",
                    self.url,
                )
            self._conditional = _CONDITIONS in capabilities
        return self._conditional

    def figures(self) -> dict[str, int]:
        silent_s = self._silent_s
        figures = {"bucket_questions": self._asked}
        if silent_s is not None:
            figures["bucket_silent_s"] = int(time.monotonic() - silent_s) + 1
        return figures

    def close(self) -> None:
        for bucket in (self._bucket, self._unasked):
            if bucket is not None:
                bucket.close()
        self._bucket = self._unasked = None

    def _verified(self) -> Bucket:
        bucket = self._bucket
        if bucket is not None:
            return bucket
        with self._connecting:
            if self._bucket is None:
                self._require_usable()  # who had the lock may have tried in vain
                begun_s = time.monotonic()
                try:
                    bucket, self._unasked = self._unasked or self._connect(), None
                except errors.EngineError as error:
                    self._note_trouble(error, begun_s)
                    raise
                self._confirm(bucket)
                self._bucket = bucket
            return self._bucket

    def _confirm(self, bucket: Bucket) -> None:
        """Make sure that a bucket answers, and is ours.

        Raises:
            EngineError: No.
        """
        begun_s = time.monotonic()
        try:
            self._mark = require_mark(bucket, self._mark)
        except errors.EngineError as error:
            self._note_trouble(error, begun_s)
            raise
        self._marked_s = time.monotonic()
        self._note_answer()

    def _require_usable(self) -> None:
        """Let somebody try now and then; fail for the others, at once."""
        with self._lock:
            if self._trouble is None or self._silent_s is None:
                return
            now_s = time.monotonic()
            if now_s >= self._next_try_s:
                self._next_try_s = now_s + _TRY_S
                self._trying = threading.get_ident()
                return
            if self._trying == threading.get_ident():
                return
            silent_s = int(now_s - self._silent_s)
            raise type(self._trouble)(f"{self._trouble} (for {silent_s} s)")

    def _note_trouble(self, error: errors.EngineError, begun_s: float) -> None:
        bucket = None
        with self._lock:
            if self._answered_s > begun_s:
                return  # it is slow, or somebody else's work keeps it
            is_news = self._trouble is None
            self._trouble = error
            if is_news:
                self._silent_s = begun_s
            self._next_try_s = time.monotonic() + _TRY_S
            self._trying = 0
            if isinstance(error, errors.StoreInaccessible):
                # The next attempt looks again for credentials, and at whose the prefix is.
                bucket, self._bucket = self._bucket, None
        if bucket is not None:
            bucket.close()
        if is_news:
            log.error(
                "%s cannot be used (%s); what is in the cache is served, the rest fails until it"
                " can", self.url, error
            )  # fmt: skip

    def _note_answer(self) -> None:
        self._answered_s = time.monotonic()
        if self._trouble is None:
            return
        with self._lock:
            silent_s, self._silent_s, self._trouble = self._silent_s, None, None
            self._trying = 0
        if silent_s is not None:
            log.warning("%s can be used again, after %d s", self.url, time.monotonic() - silent_s)


def _is_silence(error: errors.EngineError, begun_s: float) -> bool:
    """Tell whether an error comes of a server that is not there, rather than of what was asked.

    Where connections are refused there are answers, of the network, for as long as anybody tries.
    """
    return isinstance(error, errors.StoreHung) or (
        error.transient and time.monotonic() - begun_s > _SILENCE_S
    )


def claim_prefix(bucket: Bucket, mark: Mark) -> None:
    """Make an empty prefix a store's.

    Raises:
        StoreInaccessible: It is another's.
    """
    capabilities = bucket.probe()
    conditional = Capability.CONDITIONAL_PUT in capabilities
    if not conditional:
        log.warning(
            "%s does not know conditional writes: see to it that no other store gets this prefix",
            bucket.url,
        )
    with suppress(errors.ObjectNotFound):
        found = read_mark(bucket)
        raise errors.StoreInaccessible(
            f"{bucket.url} is the place of another store, {found.store_id}: give another prefix (or"
            f" remove {MARK_KEY} from it, if that store never came to be)"
        )
    noted = msgspec.structs.replace(mark, conditional=_CONDITIONS in capabilities)
    try:
        bucket.put(MARK_KEY, msgspec.json.encode(noted), if_absent=conditional)
    except errors.ObjectChanged:
        raise errors.StoreInaccessible(f"{bucket.url} has just become another store's") from None
    # Where conditions are not kept, two may have thought so.
    require_mark(bucket, mark)


def take_prefix(bucket: Bucket, mark: Mark) -> None:
    """Make a store's prefix that of another copy of it: the one before is refused from now on.

    Raises:
        ObjectNotFound: It is no store's.
        StoreInaccessible: It is another store's.
    """
    found = read_mark(bucket)
    if found.store_id != mark.store_id:
        raise errors.StoreInaccessible(f"{bucket.url} is the place of another store")
    noted = msgspec.structs.replace(mark, conditional=found.conditional)
    bucket.put(MARK_KEY, msgspec.json.encode(noted))


def read_mark(bucket: Bucket) -> Mark:
    """Return whose a prefix is.

    Raises:
        ObjectNotFound: Nobody's.
    """
    content = bucket.read(MARK_KEY, 0, _MARK_MAX)
    try:
        return msgspec.json.decode(content, type=Mark)
    except msgspec.DecodeError as error:
        raise errors.StoreInaccessible(f"{bucket.url}: {MARK_KEY} is damaged: {error}") from error


def require_mark(bucket: Bucket, mark: Mark) -> Mark:
    """Refuse a prefix that is not this store's; return what it says.

    Raises:
        StoreInaccessible.
    """
    try:
        found = read_mark(bucket)
    except errors.ObjectNotFound:
        raise errors.StoreInaccessible(
            f"{bucket.url} is not the place of this store's packs: there is no {MARK_KEY}"
        ) from None
    if found.store_id != mark.store_id:
        raise errors.StoreInaccessible(
            f"{bucket.url} has the packs of another store, {found.store_id}; this is"
            f" {mark.store_id}"
        )
    if found.holder != mark.holder:
        raise errors.StoreInaccessible(
            f"the store in {bucket.url} was restored elsewhere, and goes on there: this one is out"
            " of date"
        )
    return found
