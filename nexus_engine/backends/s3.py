"""Buckets that speak S3, by boto3."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.content import Content, opened
from nexus_engine.backends.keys import check_key, key_of, order_of, select
from nexus_engine.backends.probing import probe
from nexus_engine.backends.receiving import expect, receive
from nexus_engine.backends.retrying import (
    REQUESTS_AT_ONCE,
    Again,
    Attempt,
    Retrying,
    Sending,
    final,
)
from nexus_engine.backends.s3_errors import FAILURES, code_of, explain, status_of
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    BackendError,
    InvalidArgument,
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
)

T = TypeVar("T")

PART_BYTES = 16 << 20
"""What is larger is sent in parts; one is in memory at a time."""
_PARTS_MAX = 10_000
_KEY_BYTES_MAX = 1024

_WRITER = "nexus-writer"
"""Metadata: a random number of the `put`, by which a retry knows its own object again."""
_MD5 = "nexus-md5"
"""Metadata: of the content, where it was sent in one piece. An ETag is no such promise."""


def open_s3(url: BucketUrl) -> Bucket:
    """Return the bucket of an ``s3://`` URL."""
    endpoint, region, profile = url.text("endpoint"), url.text("region"), url.text("profile")
    path_style, deadline_s = url.flag("path_style"), url.deadline_s()
    url.finish()
    if not url.host:
        raise InvalidArgument("an s3:// URL names a bucket: s3://bucket or s3://bucket/prefix")
    retrying = Retrying(deadline_s)
    addressing = (
        {} if path_style is None else {"addressing_style": "path" if path_style else "virtual"}
    )
    config = Config(
        connect_timeout=retrying.connect_s,
        read_timeout=retrying.silence_s,
        max_pool_connections=REQUESTS_AT_ONCE,
        retries={"total_max_attempts": 1},  # `Retrying` is the layer that tries again
        # Content-MD5 does the same, and every server knows it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=addressing,
    )
    try:
        session = boto3.session.Session(profile_name=profile or None, region_name=region or None)
        client = session.client("s3", endpoint_url=endpoint or None, config=config)
    except FAILURES as error:
        raise final(explain(error, "connect", str(url))) from error
    except ValueError as error:
        raise InvalidArgument(f"{url}: {error}") from error
    return S3Bucket(client, url.host, url.prefix, url=str(url), retrying=retrying)


class S3Bucket:
    """A `Bucket` at a server that speaks S3.

    Args:
        client: Of boto3, which must neither retry nor wait for long by itself.
        prefix: Empty, or it ends in a slash.
    """

    def __init__(
        self, client: Any, bucket: str, prefix: str, *, url: str, retrying: Retrying,
        part_bytes: int = PART_BYTES,
    ) -> None:  # fmt: skip
        self.url = url
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._retrying = retrying
        self._part_bytes = part_bytes
        self._can = self._lacks = Capability(0)
        """What `probe` found, and found missing."""

    def probe(self) -> Capability:
        self._lacks = Capability(0)
        self._can = probe(self, put_in_parts=self._put_part_if_absent)
        self._lacks = ~self._can
        return self._can

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> bytes:
        if length == 0:
            if self.stat(key).etag != etag and etag:
                raise ObjectChanged(f"{key} is another version by now")
            return b""

        def attempt(this: Attempt) -> bytes:
            wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
            if etag:
                wanted["IfMatch"] = _quoted(etag)
            try:
                reply = self._client.get_object(**self._at(key), **wanted)
            except FAILURES as error:
                if status_of(error) == 416:  # it begins past the end
                    return b""
                raise
            with reply["Body"] as body:
                if etag and _etag(reply) != etag:  # a server that ignores If-Match
                    raise ObjectChanged(f"{key} is another version by now")
                said, size = reply.get("ContentRange", ""), reply["ContentLength"]
                expected, is_whole = expect(offset, length, said, size)
                content = receive(body, expected, this)
            if is_whole and not _is_intact(content, reply):
                raise Again(ObjectStoreFailed(f"{key} arrived with a wrong checksum"))
            return content

        return self._try(f"read {key}", attempt, size=length)

    def stat(self, key: str) -> ObjectInfo:
        return self._try(f"look up {key}", lambda _: self._info(key, self._head(key)))

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match:
            condition = {"IfMatch": _quoted(if_match)}
        with opened(content) as source:
            if if_absent or if_match:
                self._require(whole=source.size <= self._part_bytes)
            if source.size <= self._part_bytes:
                return self._put_whole(key, source, condition)
            return self._put_parts(key, source, condition)

    def delete(self, key: str, *, if_match: str = "") -> None:
        if if_match and Capability.CONDITIONAL_DELETE in self._lacks:
            raise NotSupported(f"{self.url} ignores conditions of a deletion")
        condition = {"IfMatch": _quoted(if_match)} if if_match else {}
        at = self._at(key)
        try:
            self._try(f"delete {key}", lambda _: self._client.delete_object(**at, **condition))
        except ObjectNotFound:
            pass
        except ObjectChanged:
            # Some servers say the same of an object that is not there.
            with suppress(ObjectNotFound):
                self.stat(key)
                raise

    def copy(self, source: str, target: str) -> ObjectInfo:
        origin = self._at(source)
        if source != target:
            self._try(
                f"copy {source} to {target}",
                lambda _: self._client.copy_object(**self._at(target), CopySource=origin),
            )
        return self.stat(target)

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        return select(self._iter_pages(prefix, start_after, delimiter), prefix, start_after)

    def close(self) -> None:
        self._retrying.close()
        self._client.close()

    def _iter_pages(
        self, prefix: str, start_after: str, delimiter: str
    ) -> Iterator[ObjectInfo | str]:
        wanted = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if start_after and Capability.ORDERED_LISTING in self._can:
            wanted["StartAfter"] = self._prefix + start_after
        if delimiter:
            wanted["Delimiter"] = delimiter
        first = ""
        while True:
            page = self._try(
                f"list {prefix or 'everything'}", lambda _: self._client.list_objects_v2(**wanted)
            )
            found: list[ObjectInfo | str] = [
                self._info(self._below(entry["Key"]), entry) for entry in page.get("Contents", ())
            ]
            found += [self._below(entry["Prefix"]) for entry in page.get("CommonPrefixes", ())]
            if found and first == (first := key_of(found[0])):
                raise ObjectStoreFailed(f"{self.url}: a listing begins anew at {first!r}")
            if delimiter:  # they come apart: objects and common prefixes
                found.sort(key=lambda item: order_of(key_of(item)))
            yield from found
            if not page.get("IsTruncated"):
                return
            if not page.get("NextContinuationToken"):
                raise ObjectStoreFailed(f"{self.url}: a listing breaks off, and says there is more")
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def _put_part_if_absent(self, key: str) -> None:
        with opened(b"1") as source:
            self._put_parts(key, source, {"IfNoneMatch": "*"})

    def _put_whole(self, key: str, source: Content, condition: dict[str, str]) -> ObjectInfo:
        content = source.read(0, source.size)
        digest = hashlib.md5(content, usedforsecurity=False).digest()
        writer = uuid.uuid4().hex

        def attempt(this: Attempt) -> ObjectInfo:
            try:
                reply = self._client.put_object(
                    **self._at(key),
                    Body=Sending(content, this),
                    ContentMD5=base64.b64encode(digest).decode(),
                    Metadata={_WRITER: writer, _MD5: digest.hex()},
                    **condition,
                )
            except FAILURES as error:
                return self._own(key, writer, this, error)
            return ObjectInfo(key, source.size, _etag(reply), _answered_ns(reply))

        return self._try(f"store {key}", attempt, size=source.size)

    def _put_parts(self, key: str, source: Content, condition: dict[str, str]) -> ObjectInfo:
        at, writer = self._at(key), uuid.uuid4().hex
        begun = self._try(
            f"store {key}",
            lambda _: self._client.create_multipart_upload(**at, Metadata={_WRITER: writer}),
        )
        upload = {**at, "UploadId": begun["UploadId"]}
        with ExitStack() as undo:
            undo.callback(self._abort, key, upload)
            size = max(self._part_bytes, -(-source.size // _PARTS_MAX))
            parts = [
                self._send_part(key, upload, number, source.read(at_, min(size, source.size - at_)))
                for number, at_ in enumerate(range(0, source.size, size), 1)
            ]

            def complete(this: Attempt) -> None:
                try:
                    self._client.complete_multipart_upload(
                        **upload, MultipartUpload={"Parts": parts}, **condition
                    )
                except FAILURES as error:
                    self._own(key, writer, this, error)

            self._try(f"store {key}", complete)
            undo.pop_all()
        # Not the ETag of the answer: some servers say another one later.
        return self.stat(key)

    def _send_part(
        self, key: str, upload: dict[str, str], number: int, content: bytes
    ) -> dict[str, object]:
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()

        def attempt(this: Attempt) -> dict[str, object]:
            body = Sending(content, this)
            reply = self._client.upload_part(
                **upload, PartNumber=number, Body=body, ContentMD5=digest
            )
            return {"PartNumber": number, "ETag": reply["ETag"]}

        return self._try(f"store part {number} of {key}", attempt, size=len(content))

    def _abort(self, key: str, upload: dict[str, str]) -> None:
        # What cannot be aborted now is for the bucket's lifecycle rule: the error that brought us
        # here matters more.
        with suppress(BackendError, NotSupported):
            self._try(
                f"abort the upload of {key}",
                lambda _: self._client.abort_multipart_upload(**upload),
            )

    def _require(self, *, whole: bool) -> None:
        """Raises NotSupported if the server is known not to honour conditions of a put."""
        needed = Capability.CONDITIONAL_PUT if whole else Capability.CONDITIONAL_PARTS
        if needed in self._lacks:
            what = "conditions" if whole else "conditions of large objects"
            raise NotSupported(f"{self.url} ignores {what}: whoever writes last wins")

    def _own(self, key: str, writer: str, this: Attempt, error: Exception) -> ObjectInfo:
        """Return what an earlier attempt stored, if the error comes from that; else raise it."""
        refused = status_of(error) == 412 or code_of(error) == "NoSuchUpload"
        if this.number and refused:
            head = self._head(key)
            if head.get("Metadata", {}).get(_WRITER) == writer:
                return self._info(key, head)
        if code_of(error) == "NoSuchUpload":
            raise ObjectStoreFailed(f"{key}: the server has forgotten the upload") from error
        raise error

    def _head(self, key: str) -> Any:
        try:
            return self._client.head_object(**self._at(key))
        except FAILURES as error:
            if status_of(error) != 404:
                raise
        # An answer to HEAD has no body that would say what it is that is not there, and a bucket
        # that is gone must not look like one whose objects were deleted.
        self._client.get_object(**self._at(key), Range="bytes=0-0")["Body"].close()
        return self._client.head_object(**self._at(key))

    def _info(self, key: str, entry: Any) -> ObjectInfo:
        size = entry["ContentLength"] if "ContentLength" in entry else entry["Size"]
        return ObjectInfo(key, int(size), _etag(entry), _ns(entry["LastModified"]))

    def _try(self, doing: str, attempt: Callable[[Attempt], T], *, size: int = 0) -> T:
        def explained(this: Attempt) -> T:
            try:
                return attempt(this)
            except FAILURES as error:
                raise explain(error, doing, self.url) from error

        return self._retrying(explained, size=size)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": check_key(self._prefix, key, _KEY_BYTES_MAX)}

    def _below(self, key: str) -> str:
        if not key.startswith(self._prefix):
            raise ObjectStoreFailed(f"{self.url}: a listing names {key!r}, which is not below it")
        return key[len(self._prefix) :]


def _is_intact(content: bytes, reply: Any) -> bool:
    told = reply.get("Metadata", {}).get(_MD5)
    return not told or told == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _etag(reply: Any) -> str:
    return str(reply["ETag"]).strip('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _ns(when: datetime) -> int:
    return int(when.timestamp()) * 10**9 + when.microsecond * 1000


def _answered_ns(reply: Any) -> int:
    """Return the time of an answer, by the server's clock; it does not say when it stored."""
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    return _ns(parsedate_to_datetime(date)) if date else 0
