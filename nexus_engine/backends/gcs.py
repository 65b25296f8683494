"""Buckets of Google Cloud Storage, by google-cloud-storage."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import requests
from google.cloud import storage

from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.content import Content, opened
from nexus_engine.backends.gcs_errors import FAILURES, explain, status_of
from nexus_engine.backends.gcs_upload import Upload
from nexus_engine.backends.keys import check_key, key_of, order_of, select
from nexus_engine.backends.probing import probe
from nexus_engine.backends.retrying import Again, Attempt, Retrying, final
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    BackendError,
    InvalidArgument,
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
    StoreInaccessible,
)

T = TypeVar("T")

WHOLE_BYTES = 8 << 20
"""What is larger is sent piece by piece, in a session that goes on where it was cut."""
PIECE_BYTES = 16 << 20
"""A multiple of 256 KiB. One is in memory at a time."""
_KEY_BYTES_MAX = 1024
_WRITER = "nexus-writer"
"""Metadata: a random number of the `put`, by which a retry knows its own object again."""
_ANY = "application/octet-stream"


def open_gcs(url: BucketUrl) -> Bucket:
    """Return the bucket of a ``gs://`` URL."""
    endpoint, project, deadline_s = url.text("endpoint"), url.text("project"), url.deadline_s()
    url.finish()
    if not url.host:
        raise InvalidArgument("a gs:// URL names a bucket: gs://bucket or gs://bucket/prefix")
    try:
        client = storage.Client(
            # None: objects need no project. It is who pays where the bucket's owner does not.
            project=project or None,
            client_options={"api_endpoint": endpoint} if endpoint else None,
        )
    except FAILURES as error:
        raise final(explain(error, "connect", str(url))) from error
    # Else the SDK asks for the bucket's own metadata in threads that nobody waits for.
    client._bucket_metadata_cache = None
    bucket = client.bucket(url.host, user_project=project or None)
    return GcsBucket(client, bucket, url.prefix, url=str(url), retrying=Retrying(deadline_s))


class GcsBucket:
    """A `Bucket` in Google Cloud Storage. An etag is an object's generation.

    Args:
        prefix: Empty, or it ends in a slash.
    """

    def __init__(
        self, client: Any, bucket: Any, prefix: str, *, url: str, retrying: Retrying
    ) -> None:
        self.url = url
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._retrying = retrying
        self._uploads = requests.Session()
        """Their URLs need no credentials."""
        self._can = self._lacks = Capability(0)
        """What `probe` found, and found missing."""

    def probe(self) -> Capability:
        self._lacks = Capability(0)
        self._can = probe(self, put_in_parts=self._put_piece_if_absent)
        self._lacks = ~self._can
        return self._can

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> bytes:
        if length == 0:
            if self.stat(key).etag != etag and etag:
                raise ObjectChanged(f"{key} is another version by now")
            return b""
        blob = self._blob(key, generation=int(etag) if etag else None)

        def attempt(this: Attempt) -> bytes:
            received = _Receiving(this)
            try:
                blob.download_to_file(
                    received, start=offset, end=offset + length - 1, checksum=None,
                    # As it is stored, also where it is stored compressed.
                    raw_download=True, **self._patience(this),
                )  # fmt: skip
            except FAILURES as error:
                if status_of(error) == 416:  # it begins past the end
                    return b""
                raise
            content = received.getvalue()
            generation = str(blob.generation or "")
            if etag and generation not in ("", etag):
                raise ObjectChanged(f"{key} is another version by now")
            if len(content) != length:
                self._require_end(key, offset, length, len(content), generation, this)
            return content

        try:
            return self._try(f"read {key}", attempt, size=length)
        except ObjectNotFound:
            if self.stat(key):  # or it raises
                raise ObjectChanged(f"{key} is another version by now") from None
            raise

    def stat(self, key: str) -> ObjectInfo:
        try:
            return self._try(f"look up {key}", lambda this: self._info(self._reload(key, this)))
        except ObjectNotFound:
            self._require_bucket()
            raise

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        generation = 0 if if_absent else int(if_match) if if_match else None
        try:
            with opened(content) as source:
                if if_absent or if_match:
                    self._require(whole=source.size <= WHOLE_BYTES)
                if source.size <= WHOLE_BYTES:
                    return self._put_whole(key, source, generation)
                return self._put_pieces(key, source, generation)
        except ObjectNotFound:
            if if_match:
                raise ObjectChanged(f"{key} is not there any more") from None
            raise self._no_bucket() from None

    def delete(self, key: str, *, if_match: str = "") -> None:
        if if_match and Capability.CONDITIONAL_DELETE in self._lacks:
            raise NotSupported(f"{self.url} ignores conditions of a deletion")
        blob = self._blob(key)
        generation = int(if_match) if if_match else None
        with suppress(ObjectNotFound):
            self._try(
                f"delete {key}",
                lambda this: blob.delete(if_generation_match=generation, **self._patience(this)),
            )

    def copy(self, source: str, target: str) -> ObjectInfo:
        if source != target:
            origin, blob = self._blob(source), self._blob(target)

            def rewrite(token: str | None, this: Attempt) -> tuple[str | None, int, int]:
                moved: tuple[str | None, int, int] = blob.rewrite(
                    origin, token=token, **self._patience(this)
                )
                return moved

            token: str | None = None
            is_begun = False
            while token or not is_begun:
                # A large one takes several calls.
                token, _, _ = self._try(f"copy {source} to {target}", partial(rewrite, token))
                is_begun = True
        return self.stat(target)

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        return select(self._iter_pages(prefix, start_after, delimiter), prefix, start_after)

    def close(self) -> None:
        self._retrying.close()
        self._uploads.close()
        self._client.close()

    def _iter_pages(
        self, prefix: str, start_after: str, delimiter: str
    ) -> Iterator[ObjectInfo | str]:
        wanted = {"prefix": self._prefix + prefix}
        if start_after and Capability.ORDERED_LISTING in self._can:
            wanted["start_offset"] = self._prefix + start_after
        if delimiter:
            wanted["delimiter"] = delimiter
        while True:
            try:
                found, following = self._try(
                    f"list {prefix or 'everything'}", lambda this: self._page(this, **wanted)
                )
            except ObjectNotFound:
                raise self._no_bucket() from None
            if delimiter:  # they come apart: objects and common prefixes
                found.sort(key=lambda item: order_of(key_of(item)))
            yield from found
            if not following:
                return
            if following == wanted.get("page_token"):
                raise ObjectStoreFailed(f"{self.url}: a listing does not come to an end")
            wanted["page_token"] = following

    def _put_piece_if_absent(self, key: str) -> None:
        with opened(b"1") as source:
            self._put_pieces(key, source, 0)

    def _put_whole(self, key: str, source: Content, generation: int | None) -> ObjectInfo:
        content = source.read(0, source.size)
        blob = self._blob(key)
        blob.metadata = {_WRITER: uuid.uuid4().hex}

        def attempt(this: Attempt) -> ObjectInfo:
            try:
                blob.upload_from_string(
                    content, content_type=_ANY, checksum="crc32c", if_generation_match=generation,
                    **self._patience(this, source.size),
                )  # fmt: skip
            except FAILURES as error:
                return self._own(key, blob.metadata[_WRITER], this, error)
            return self._info(blob)

        return self._try(f"store {key}", attempt, size=source.size)

    def _put_pieces(self, key: str, source: Content, generation: int | None) -> ObjectInfo:
        """Send a content in a resumable session.

        Source: Resumable uploads (Cloud Storage documentation).
        """
        blob = self._blob(key)
        # Of the whole: the server makes no object of bytes that have another one.
        blob.crc32c = _crc32c(source)
        url = self._try(
            f"store {key}",
            lambda this: blob.create_resumable_upload_session(
                content_type=_ANY, size=source.size, if_generation_match=generation,
                checksum=None, **self._patience(this),
            ),
        )  # fmt: skip
        upload = Upload(self._uploads, url, source.size)
        try:
            while upload.made is None:
                piece = source.read(upload.stored, min(PIECE_BYTES, source.size - upload.stored))
                self._try(f"store {key}", partial(upload.send, piece), size=len(piece))
        finally:
            if upload.made is None:
                with suppress(BackendError):
                    self._try(f"abort the upload of {key}", upload.abort)
        made = upload.made
        when = datetime.fromisoformat(made["timeCreated"])
        return ObjectInfo(key, int(made["size"]), str(made["generation"]), _ns(when))

    def _require(self, *, whole: bool) -> None:
        """Raises NotSupported if the server is known not to honour conditions of a put."""
        needed = Capability.CONDITIONAL_PUT if whole else Capability.CONDITIONAL_PARTS
        if needed in self._lacks:
            what = "conditions" if whole else "conditions of large objects"
            raise NotSupported(f"{self.url} ignores {what}: whoever writes last wins")

    def _own(self, key: str, writer: str, this: Attempt, error: Exception) -> ObjectInfo:
        """Return what an earlier attempt stored, if the error comes from that; else raise it."""
        if this.number and status_of(error) == 412:
            blob = self._reload(key, this)
            if (blob.metadata or {}).get(_WRITER) == writer:
                return self._info(blob)
        raise error

    def _require_end(
        self, key: str, offset: int, length: int, received: int, etag: str, this: Attempt
    ) -> None:
        """Raises Again where a read is short, and the object goes on.

        The SDK does not say how long the object is, of which it reads a part.
        """
        found = self._reload(key, this)
        expected = max(0, min(length, found.size - offset))
        if str(found.generation) == etag and received != expected:
            raise Again(ObjectStoreFailed(f"{received} bytes of {key} came, {expected} should"))

    def _reload(self, key: str, this: Attempt) -> Any:
        blob = self._blob(key)
        blob.reload(**self._patience(this))
        return blob

    def _require_bucket(self) -> None:
        """Raises StoreInaccessible if there is none: it must not look like deleted objects."""
        try:
            self._try("look", lambda this: self._page(this, prefix=self._prefix, page_size=1))
        except ObjectNotFound:
            raise self._no_bucket() from None
        except StoreInaccessible:
            pass  # who may not list sees what is in it all the same

    def _no_bucket(self) -> StoreInaccessible:
        return StoreInaccessible(f"there is no bucket {self.url}: make it, or correct the URL")

    def _page(self, this: Attempt, **wanted: Any) -> tuple[list[ObjectInfo | str], str]:
        """Return a page of a listing, and the token of the next one."""
        pages = self._client.list_blobs(self._bucket, **wanted, **self._patience(this))
        found: list[ObjectInfo | str] = [self._info(blob) for blob in next(pages.pages)]
        found += [self._below(name) for name in pages.prefixes]
        return found, str(pages.next_page_token or "")

    def _try(self, doing: str, attempt: Callable[[Attempt], T], *, size: int = 0) -> T:
        def explained(this: Attempt) -> T:
            try:
                return attempt(this)
            except FAILURES as error:
                raise explain(error, doing, self.url) from error

        return self._retrying(explained, size=size)

    def _patience(self, this: Attempt, size: int = 0) -> dict[str, Any]:
        """Return how long one request may take. `Retrying` is the layer that tries again."""
        return {"timeout": (this.send_s(size), this.wait_s()), "retry": None}

    def _blob(self, key: str, generation: int | None = None) -> Any:
        name = check_key(self._prefix, key, _KEY_BYTES_MAX)
        return self._bucket.blob(name, generation=generation)

    def _info(self, blob: Any) -> ObjectInfo:
        key = self._below(blob.name)
        return ObjectInfo(key, int(blob.size), str(blob.generation), _ns(blob.time_created))

    def _below(self, key: str) -> str:
        if not key.startswith(self._prefix):
            raise ObjectStoreFailed(f"{self.url}: a listing names {key!r}, which is not below it")
        return key[len(self._prefix) :]


class _Receiving(io.BytesIO):
    """What takes a body, until the deadline."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self._attempt = attempt

    def write(self, content: Any, /) -> int:
        self._attempt.wait_s()
        return super().write(content)


def _crc32c(source: Content) -> str:
    checksum = google_crc32c.Checksum()
    for offset in range(0, source.size, PIECE_BYTES):
        checksum.update(source.read(offset, min(PIECE_BYTES, source.size - offset)))
    return base64.b64encode(checksum.digest()).decode()


def _ns(when: datetime) -> int:
    return int(when.timestamp()) * 10**9 + when.microsecond * 1000
