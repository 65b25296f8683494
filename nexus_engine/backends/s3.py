"""Buckets that speak S3, by boto3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from nexus_engine.backends.base import View
from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.content import Content, OfBytes, opened
from nexus_engine.backends.keys import check_key, key_of, order_of, select
from nexus_engine.backends.probing import Tested, probe
from nexus_engine.backends.receiving import expect, receive
from nexus_engine.backends.retrying import (
    REQUESTS_AT_ONCE,
    Again,
    Attempt,
    Retrying,
    Sending,
    Tries,
    final,
)
from nexus_engine.backends.s3_errors import FAILURES, code_of, explain, is_cut, status_of
from nexus_engine.backends.s3_upload import PARTS_MAX, WRITER, MultipartUpload, md5_of
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    InvalidArgument,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
)
from nexus_engine.times import ns_of

WHOLE_BYTES = 96 << 20
"""What is larger is sent in parts. A pack is not, which would take eight requests instead of one,
unless the connection is cut: then it is sent in parts all the same."""
PART_BYTES = 16 << 20
"""One is in memory at a time."""
COPY_BYTES = 1 << 30
"""What is larger is copied in parts; 5 GiB would be the most for one."""
_KEY_BYTES_MAX = 1024
_READ_MAX = 1 << 30
"""Who asks for more means all of it; the deadline is not for what is asked."""

_HEADERS_ALONE = Config(s3={"payload_signing_enabled": False})
_MD5 = "nexus-md5"
"""Metadata: of the content, where it was sent in one piece. An ETag is no such promise."""


def open_s3(url: BucketUrl) -> Bucket:
    """Return the bucket of an ``s3://`` URL."""
    endpoint, region, profile = url.endpoint(), url.text("region"), url.text("profile")
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
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-sign.s3.{operation}", _sign_headers_alone)
    except FAILURES as error:
        raise final(explain(error, "connect", str(url))) from error
    except ValueError as error:
        raise InvalidArgument(f"{url}: {error}") from error
    return S3Bucket(
        client, url.host, url.prefix, url=str(url), retrying=retrying,
        whole_bytes=WHOLE_BYTES, part_bytes=PART_BYTES,
    )  # fmt: skip


def _sign_headers_alone(request: Any, **_: object) -> None:
    """Have a content be signed by its Content-MD5 without TLS too, and not hashed once more."""
    request.context["client_config"] = _HEADERS_ALONE


class _Cut(Exception):
    """The connection did not last for all of a body."""


class S3Bucket:
    """A `Bucket` at a server that speaks S3.

    Args:
        client: Of boto3, which must neither retry nor wait for long by itself.
        prefix: Empty, or it ends in a slash.
    """

    def __init__(
        self, client: Any, bucket: str, prefix: str, *, url: str, retrying: Retrying,
        whole_bytes: int = WHOLE_BYTES, part_bytes: int = PART_BYTES, copy_bytes: int = COPY_BYTES,
    ) -> None:  # fmt: skip
        self.url = url
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._try = Tries(retrying, FAILURES, explain, url)
        self._whole_bytes = whole_bytes
        self._part_bytes = part_bytes
        self._copy_bytes = copy_bytes
        self._tested = Tested(url)

    def probe(self) -> Capability:
        self._tested.forget()
        return self._tested.note(probe(self, put_in_parts=self._put_part_if_absent))

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> View:
        if length == 0:
            if self.stat(key).etag != etag and etag:
                raise ObjectChanged(f"{key} is another version by now")
            return b""

        def attempt(this: Attempt) -> View:
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
                said, size = reply.get("ContentRange", ""), reply.get("ContentLength")
                expected, is_whole = expect(offset, length, said, size)
                content = receive(body, expected, this)
            if is_whole and not _is_intact(content, reply):
                raise Again(ObjectStoreFailed(f"{key} arrived with a wrong checksum"))
            return content

        return self._try(f"read {key}", attempt, size=min(length, _READ_MAX))

    def stat(self, key: str) -> ObjectInfo:
        return self._try(f"look up {key}", lambda _: self._info(key, self._head(key)))

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match:
            condition = {"IfMatch": _quoted(if_match)}
        try:
            with opened(content) as source:
                if if_absent or if_match:
                    self._require_conditions(source.size)
                if source.size <= self._whole_bytes:
                    with suppress(_Cut):
                        return self._put_whole(key, source, condition)
                return self._put_parts(key, source, condition)
        except ObjectNotFound:
            raise ObjectChanged(f"{key} is not there any more") from None

    def delete(self, key: str, *, if_match: str = "") -> None:
        if if_match:
            self._tested.require(Capability.CONDITIONAL_DELETE)
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
        origin, found = self._at(source), self.stat(source)
        if source == target:
            return found
        doing = f"copy {source} to {target}"
        if found.size <= self._copy_bytes:
            at = self._at(target)
            self._try(doing, lambda _: self._client.copy_object(**at, CopySource=origin))
        else:
            with MultipartUpload(self._client, self._at(target), self._try, doing=doing) as upload:
                for first in range(0, found.size, self._copy_bytes):
                    last = min(first + self._copy_bytes, found.size) - 1
                    upload.copy(origin, found.etag, first, last)
                upload.complete({}, partial(self._own, target, upload.writer))
        return self.stat(target)

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        return select(self._iter_pages(prefix, start_after, delimiter), prefix, start_after)

    def close(self) -> None:
        self._try.close()
        self._client.close()

    def _iter_pages(
        self, prefix: str, start_after: str, delimiter: str
    ) -> Iterator[ObjectInfo | str]:
        wanted = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if start_after and self._tested.can(Capability.ORDERED_LISTING):
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
        writer, md5 = uuid.uuid4().hex, md5_of(source)

        cut = False

        def attempt(this: Attempt) -> ObjectInfo:
            nonlocal cut
            if cut:
                if found := self._find_own(key, writer):
                    return found
                raise _Cut
            try:
                reply = self._client.put_object(
                    **self._at(key),
                    Body=Sending(source, this),
                    ContentMD5=md5,
                    Metadata={WRITER: writer, _MD5: md5},
                    **condition,
                )
            except FAILURES as error:
                cut = source.size > self._part_bytes and is_cut(error)
                return self._own(key, writer, this, error)
            return ObjectInfo(key, source.size, _etag(reply), _answered_ns(reply))

        return self._try(f"store {key}", attempt, size=source.size)

    def _put_parts(self, key: str, source: Content, condition: dict[str, str]) -> ObjectInfo:
        size = max(self._part_bytes, -(-source.size // PARTS_MAX))
        with MultipartUpload(
            self._client, self._at(key), self._try, doing=f"store {key}"
        ) as upload:
            for offset in range(0, source.size, size):
                upload.send(source.read(offset, min(size, source.size - offset)))
            upload.complete(condition, partial(self._own, key, upload.writer))
        # Not the ETag of the answer: some servers say another one later.
        return self.stat(key)

    def _require_conditions(self, size: int) -> None:
        whole = size <= self._whole_bytes
        self._tested.require(Capability.CONDITIONAL_PUT if whole else Capability.CONDITIONAL_PARTS)

    def _own(self, key: str, writer: str, this: Attempt, error: Exception) -> ObjectInfo:
        """Return what an earlier attempt stored, if the error comes from that; else raise it."""
        refused = status_of(error) == 412 or code_of(error) == "NoSuchUpload"
        if this.number and refused and (found := self._find_own(key, writer)):
            return found
        if code_of(error) == "NoSuchUpload":
            raise ObjectStoreFailed(f"{key}: the server has forgotten the upload") from error
        raise error

    def _find_own(self, key: str, writer: str) -> ObjectInfo | None:
        """Return what was stored under a key, if it was by this writer."""
        try:
            head = self._head(key)
        except FAILURES as gone:
            if status_of(gone) != 404:
                raise
            return None
        is_own = head.get("Metadata", {}).get(WRITER) == writer
        return self._info(key, head) if is_own else None

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
        return ObjectInfo(key, int(size), _etag(entry), ns_of(entry["LastModified"]))

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": check_key(self._prefix, key, _KEY_BYTES_MAX)}

    def _below(self, key: str) -> str:
        if not key.startswith(self._prefix):
            raise ObjectStoreFailed(f"{self.url}: a listing names {key!r}, which is not below it")
        return key[len(self._prefix) :]


def _is_intact(content: View, reply: Any) -> bool:
    told = reply.get("Metadata", {}).get(_MD5)
    return not told or told == md5_of(OfBytes(content))


def _etag(reply: Any) -> str:
    return str(reply["ETag"]).strip('"')


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _answered_ns(reply: Any) -> int:
    """Return the time of an answer, by the server's clock; it does not say when it stored."""
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    return ns_of(parsedate_to_datetime(date)) if date else 0
