"""Buckets of Google Cloud Storage, by google-cloud-storage."""

from __future__ import annotations

import base64
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google.auth
import google_crc32c
import requests
from google.api_core.exceptions import from_http_response
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage

from nexus_engine.backends.base import View
from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.content import Content, OfBytes, Slice, opened
from nexus_engine.backends.google_errors import FAILURES, explain, status_of
from nexus_engine.backends.google_upload import Upload
from nexus_engine.backends.keys import check_key, key_of, order_of, select
from nexus_engine.backends.probing import Tested, probe
from nexus_engine.backends.receiving import receive_answer
from nexus_engine.backends.retrying import Again, Attempt, Retrying, Tries, final
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    BackendError,
    InvalidArgument,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
    StoreInaccessible,
)
from nexus_engine.times import ns_of

WHOLE_BYTES = 8 << 20
"""What is larger is sent piece by piece, in a session that goes on where it was cut."""
PIECE_BYTES = 96 << 20
"""A multiple of 256 KiB. A pack is one."""
_CHECKED_BYTES = 1 << 20
_KEY_BYTES_MAX = 1024
_READ_MAX = 1 << 30
"""Who asks for more means all of it; the deadline is not for what is asked."""
_WRITER = "nexus-writer"
"""Metadata: a random number of the `put`, by which a retry knows its own object again."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_ANY = "application/octet-stream"


def open_gcs(url: BucketUrl) -> Bucket:
    """Return the bucket of a ``gs://`` URL."""
    endpoint, project, deadline_s = url.endpoint(), url.text("project"), url.deadline_s()
    url.finish()
    if not url.host:
        raise InvalidArgument("a gs:// URL names a bucket: gs://bucket or gs://bucket/prefix")
    try:
        if os.environ.get("STORAGE_EMULATOR_HOST"):  # which has no accounts
            credentials = AnonymousCredentials()
        else:
            credentials, _ = google.auth.default(scopes=[_SCOPE])
    except FAILURES as error:
        raise final(explain(error, "connect", str(url))) from error
    options = {"api_endpoint": endpoint} if endpoint else None
    # Objects need no project; it is who pays where the bucket's owner does not.
    client = storage.Client(project or None, credentials, client_options=options)
    # Else the SDK asks for the bucket's own metadata, in threads that nobody waits for.
    client._bucket_metadata_cache = None
    return GcsBucket(
        client, client.bucket(url.host, user_project=project or None), url.prefix,
        http=AuthorizedSession(credentials), url=str(url), retrying=Retrying(deadline_s),
    )  # fmt: skip


class GcsBucket:
    """A `Bucket` in Google Cloud Storage. An etag is an object's generation.

    Args:
        prefix: Empty, or it ends in a slash.
        http: With credentials, for bodies: the SDK keeps back what the answer says of them, and a
            session of an upload cannot go on.
    """

    def __init__(
        self, client: Any, bucket: Any, prefix: str, *, http: requests.Session, url: str,
        retrying: Retrying,
    ) -> None:  # fmt: skip
        self.url = url
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._try = Tries(retrying, FAILURES, explain, url)
        self._http = http
        self._tested = Tested(url)

    def probe(self) -> Capability:
        self._tested.forget()
        return self._tested.note(probe(self, put_in_parts=self._put_piece_if_absent))

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> View:
        if length == 0:
            if self.stat(key).etag != etag and etag:
                raise ObjectChanged(f"{key} is another version by now")
            return b""
        name = quote(check_key(self._prefix, key, _KEY_BYTES_MAX), safe="")
        url = f"{self._client.api_endpoint}/storage/v1/b/{self._bucket.name}/o/{name}"
        wanted = {"alt": "media", "generation": etag, "userProject": self._bucket.user_project}

        def attempt(this: Attempt) -> View:
            with self._http.get(
                url, params={name: value for name, value in wanted.items() if value},
                # As it is stored, also where it is stored compressed.
                headers={
                    "Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "gzip"
                },
                stream=True, timeout=(this.wait_s(), this.wait_s()),
            ) as reply:  # fmt: skip
                if reply.status_code == 416:  # it begins past the end
                    return b""
                if not reply.ok:
                    raise from_http_response(reply)
                if etag and reply.headers.get("X-Goog-Generation", etag) != etag:
                    raise ObjectChanged(f"{key} is another version by now")
                content, is_whole = receive_answer(reply, offset, length, this)
            if is_whole and not _is_intact(content, reply.headers.get("X-Goog-Hash", "")):
                raise Again(ObjectStoreFailed(f"{key} arrived with a wrong checksum"))
            return content

        try:
            return self._try(f"read {key}", attempt, size=min(length, _READ_MAX))
        except ObjectNotFound:
            self.stat(key)  # raises, if there is none
            raise ObjectChanged(f"{key} is another version by now") from None

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
                    self._require_conditions(source.size)
                if source.size <= WHOLE_BYTES:
                    return self._put_whole(key, source, generation)
                return self._put_pieces(key, source, generation)
        except ObjectNotFound:
            if if_match:
                raise ObjectChanged(f"{key} is not there any more") from None
            raise self._no_bucket() from None

    def delete(self, key: str, *, if_match: str = "") -> None:
        if if_match:
            self._tested.require(Capability.CONDITIONAL_DELETE)
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
        self._try.close()
        self._http.close()
        self._client.close()

    def _iter_pages(
        self, prefix: str, start_after: str, delimiter: str
    ) -> Iterator[ObjectInfo | str]:
        wanted = {"prefix": self._prefix + prefix}
        if start_after and self._tested.can(Capability.ORDERED_LISTING):
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
        blob, writer = self._blob(key), uuid.uuid4().hex
        blob.metadata = {_WRITER: writer}

        def attempt(this: Attempt) -> ObjectInfo:
            try:
                blob.upload_from_string(
                    content, content_type=_ANY, checksum="crc32c", if_generation_match=generation,
                    **self._patience(this, source.size),
                )  # fmt: skip
            except FAILURES as error:
                return self._own(key, writer, this, error)
            self._require_same(key, blob.size, blob.crc32c, source)
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
        upload = Upload(self._http, url, source.size)
        try:
            while upload.made is None:
                size = min(PIECE_BYTES, source.size - upload.stored)
                piece = Slice(source, upload.stored, size)
                self._try(f"store {key}", partial(upload.send, piece), size=size)
        finally:
            if upload.made is None:
                with suppress(BackendError):
                    self._try(f"abort the upload of {key}", upload.abort)
        made = upload.made
        self._require_same(key, int(made["size"]), made["crc32c"], source)
        when = datetime.fromisoformat(made["timeCreated"])
        return ObjectInfo(key, int(made["size"]), str(made["generation"]), ns_of(when))

    def _require_same(self, key: str, size: int, crc32c: str, source: Content) -> None:
        """Raises ObjectStoreFailed if the server says that it has stored something else."""
        if (size, crc32c) != (source.size, _crc32c(source)):
            raise ObjectStoreFailed(f"cannot store {key} in {self.url}: something else was stored")

    def _require_conditions(self, size: int) -> None:
        whole = size <= WHOLE_BYTES
        self._tested.require(Capability.CONDITIONAL_PUT if whole else Capability.CONDITIONAL_PARTS)

    def _own(self, key: str, writer: str, this: Attempt, error: Exception) -> ObjectInfo:
        """Return what an earlier attempt stored, if the error comes from that; else raise it."""
        if this.number and status_of(error) == 412:
            try:
                blob = self._reload(key, this)
            except FAILURES as gone:
                if status_of(gone) != 404:
                    raise
            else:
                if (blob.metadata or {}).get(_WRITER) == writer:
                    return self._info(blob)
        raise error

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

    def _patience(self, this: Attempt, size: int = 0) -> dict[str, Any]:
        """Return how long one request may take. `Retrying` is the layer that tries again."""
        return {"timeout": (this.send_s(size), this.wait_s()), "retry": None}

    def _blob(self, key: str, generation: int | None = None) -> Any:
        name = check_key(self._prefix, key, _KEY_BYTES_MAX)
        return self._bucket.blob(name, generation=generation)

    def _info(self, blob: Any) -> ObjectInfo:
        key = self._below(blob.name)
        return ObjectInfo(key, int(blob.size), str(blob.generation), ns_of(blob.time_created))

    def _below(self, key: str) -> str:
        if not key.startswith(self._prefix):
            raise ObjectStoreFailed(f"{self.url}: a listing names {key!r}, which is not below it")
        return key[len(self._prefix) :]


def _crc32c(source: Content) -> str:
    """Source: X-Goog-Hash (Cloud Storage documentation)."""
    checksum = google_crc32c.Checksum()
    for offset in range(0, source.size, _CHECKED_BYTES):
        checksum.update(source.read(offset, min(_CHECKED_BYTES, source.size - offset)))
    return base64.b64encode(checksum.digest()).decode()


def _is_intact(content: View, hashes: str) -> bool:
    told = re.search(r"crc32c=([^,]*)", hashes)
    return not told or told[1] == _crc32c(OfBytes(content))
