"""A folder of Google Drive as a bucket: names are keys, and documents are exported files."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import google.auth
from google.auth.transport.requests import AuthorizedSession

from nexus_engine.backends.base import View
from nexus_engine.backends.bucket import Bucket, Capability, ObjectInfo
from nexus_engine.backends.content import Content, opened
from nexus_engine.backends.drive_api import FOLDER, DriveApi, File
from nexus_engine.backends.google_errors import FAILURES, explain
from nexus_engine.backends.keys import check_key
from nexus_engine.backends.retrying import Retrying, final
from nexus_engine.backends.trees import walk
from nexus_engine.backends.urls import BucketUrl
from nexus_engine.errors import (
    InvalidArgument,
    InvalidName,
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
    StoreInaccessible,
)
from nexus_engine.times import ns_of

_ENDPOINT = "https://www.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/drive"
_GOOGLES = "application/vnd.google-apps."
_OFFICE = "application/vnd.openxmlformats-officedocument."
_EXPORTS = {
    f"{_GOOGLES}document": (".docx", f"{_OFFICE}wordprocessingml.document"),
    f"{_GOOGLES}spreadsheet": (".xlsx", f"{_OFFICE}spreadsheetml.sheet"),
    f"{_GOOGLES}presentation": (".pptx", f"{_OFFICE}presentationml.presentation"),
    f"{_GOOGLES}drawing": (".svg", "image/svg+xml"),
}
"""Documents that have no bytes of their own, and what they are exported as."""
_SLASH = "\N{FULLWIDTH SOLIDUS}"
"""Stands in keys for a slash in a name."""
_TWIN = re.compile(r"(?P<stem>.*) \[(?P<id>[\w-]{10,})\](?P<suffix>\.[^./]*)?")
"""The key of what has the name of another in its folder: with its id, before the suffix."""
_EXPORTED_MAX = 4
_FOLDERS_MAX = 10_000
_KEY_BYTES_MAX = 1024
_PIECE = 1 << 20
_FRESH_S = 10.0
"""For so long a folder is believed to be where it was."""


def open_gdrive(url: BucketUrl) -> Bucket:
    """Return the bucket of a ``gdrive://`` URL."""
    endpoint, deadline_s = url.endpoint(), url.deadline_s()
    url.finish()
    if not url.host:
        raise InvalidArgument(
            "a gdrive:// URL names a folder by its id, which is in its address: gdrive://ID, or"
            " gdrive://root"
        )
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except FAILURES as error:
        raise final(explain(error, "connect", str(url))) from error
    api = DriveApi(
        AuthorizedSession(credentials), endpoint or _ENDPOINT, url=str(url),
        retrying=Retrying(deadline_s),
    )  # fmt: skip
    return DriveBucket(api, url.host, url.prefix, url=str(url))


class DriveBucket:
    """A `Bucket` in a folder of Drive. Folders are made where keys want them.

    Drive knows no conditions. What is deleted goes to the trash. The size of a document that is
    exported is known only once it was: listings say -1.
    """

    def __init__(self, api: DriveApi, root_id: str, prefix: str, *, url: str) -> None:
        self.url = url
        self._api = api
        self._root_id = root_id
        self._prefix = prefix
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._folders: dict[str, tuple[str, float]] = {}
        """Ids of folders, by keys with a slash, and when they were found."""
        self._exported: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        """What was exported last, by id and version: `stat` and `read` come in pairs."""

    def probe(self) -> Capability:
        self._find(self._root_id, "/")  # or it raises
        return (
            Capability.COPY | Capability.VERSIONS | Capability.ORDERED_LISTING
            | Capability.CHANGE_FEED
        )  # fmt: skip

    def read(self, key: str, offset: int, length: int, *, etag: str = "") -> View:
        file = self._get(key)
        newest = _etag(file)
        if etag not in ("", newest) and "headRevisionId" not in file:
            raise ObjectChanged(f"{key} is another version by now")
        if file["mimeType"] in _EXPORTS:
            return self._export(file)[offset : offset + length]
        if not length:
            return b""
        # By its revision: somebody may write a newer one between the two requests.
        revision = (etag or newest) if "headRevisionId" in file else ""
        digest = file.get("md5Checksum", "") if etag in ("", newest) else ""
        try:
            return self._api.download(file["id"], revision, offset, length, md5=digest)
        except ObjectNotFound:
            raise ObjectChanged(f"{key} is another version by now") from None

    def stat(self, key: str) -> ObjectInfo:
        file = self._get(key)
        info = _info(key, file)
        return info._replace(size=len(self._export(file))) if info.size < 0 else info

    def put(
        self, key: str, content: bytes | Path, *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        if if_absent or if_match:
            raise NotSupported(f"{self.url} knows no conditions: whoever writes last wins")
        folder, name = self._split(key)
        with opened(content) as source:
            folder_id = self._make_folder(folder)
            there = self._find(folder_id, name)
            if there is None:
                file = self._api.create(name, folder_id, source)
            elif there["mimeType"] in _EXPORTS:
                raise NotSupported(f"{key} is a document of Google's, which can only be read")
            else:
                file = self._api.update(there["id"], source)
            _require_same(key, file, _md5(source))
        return _info(key, file)

    def delete(self, key: str, *, if_match: str = "") -> None:
        if if_match:
            raise NotSupported(f"{self.url} knows no conditions of a deletion")
        with suppress(ObjectNotFound):
            self._api.trash(self._get(key)["id"])

    def copy(self, source: str, target: str) -> ObjectInfo:
        file = self._get(source)
        if source == target:
            return self.stat(target)
        folder, name = self._split(target)
        suffix = _EXPORTS.get(file["mimeType"], ("", ""))[0]
        if not name.endswith(suffix):
            raise InvalidName(f"{source} is a document of Google's: its copies end in {suffix}")
        folder_id = self._make_folder(folder)
        there = self._find(folder_id, name)
        self._api.copy(file["id"], name.removesuffix(suffix), folder_id)
        if there is not None:
            self._api.trash(there["id"])
        return self.stat(target)

    def iter_objects(
        self, prefix: str = "", *, start_after: str = "", delimiter: str = ""
    ) -> Iterator[ObjectInfo | str]:
        return walk(self._children, prefix, start_after, delimiter)

    def changes_end(self) -> str:
        return self._api.changes_end()

    def changed_since(self, position: str) -> tuple[bool, str]:
        # Anywhere in the account's Drive: what was moved out of the folder does not say that it was
        # in it.
        count, following = self._api.count_changes(position)
        return count > 0, following

    def close(self) -> None:
        self._api.close()

    def _children(self, folder: str) -> Iterator[ObjectInfo | str]:
        folder_id = self._find_folder(self._prefix + folder)
        if folder_id is None:
            return
        for name, file in _named(self._list(folder_id)).items():
            key = folder + name
            yield key if name.endswith("/") else _info(key, file)

    def _get(self, key: str) -> File:
        folder, name = self._split(key)
        folder_id = self._find_folder(folder)
        found = None if folder_id is None else self._find(folder_id, name)
        if found is None:
            raise ObjectNotFound(f"there is no {key} in {self.url}")
        return found

    def _find(self, folder_id: str, name: str) -> File | None:
        """Return the file of a name; with a slash at its end, the folder."""
        return _named(self._list(folder_id, _real_names(name.rstrip("/")))).get(name)

    def _list(self, folder_id: str, names: set[str] | None = None) -> list[File]:
        try:
            return list(self._api.iter_children(folder_id, names))
        except ObjectNotFound:
            if folder_id == self._root_id:
                raise StoreInaccessible(
                    f"there is no folder {self.url}, or not for this account: share it with the"
                    " account, or correct the URL"
                ) from None
            return []

    def _find_folder(self, path: str) -> str | None:
        """Return the id of a folder below the root; its path is empty or ends in a slash."""
        if not path:
            return self._root_id
        with self._lock:
            found_id, when_s = self._folders.get(path, ("", 0.0))
        if found_id and time.monotonic() - when_s < _FRESH_S:
            return found_id
        parent, name = _split_path(path)
        parent_id = self._find_folder(parent)
        found = None if parent_id is None else self._find(parent_id, name)
        return None if found is None else self._note_folder(path, found)

    def _make_folder(self, path: str) -> str:
        found_id = self._find_folder(path)
        if found_id is not None:
            return found_id
        parent, name = _split_path(path)
        parent_id = self._make_folder(parent)
        with self._making:
            found = self._find(parent_id, name)
            if found is None:
                made = self._api.make_folder(name.rstrip("/"), parent_id)
                # Another client may have made one too: the older one counts.
                found = self._find(parent_id, name) or made
                if found["id"] != made["id"]:
                    self._api.trash(made["id"])
        return self._note_folder(path, found)

    def _note_folder(self, path: str, folder: File) -> str:
        with self._lock:
            if len(self._folders) >= _FOLDERS_MAX:
                self._folders.clear()
            self._folders[path] = (str(folder["id"]), time.monotonic())
        return str(folder["id"])

    def _export(self, file: File) -> bytes:
        name = (str(file["id"]), _etag(file))
        with self._lock:
            content = self._exported.get(name)
        if content is None:
            content = self._api.export(file["id"], _EXPORTS[file["mimeType"]][1])
            with self._lock:
                self._exported[name] = content
                while len(self._exported) > _EXPORTED_MAX:
                    self._exported.popitem(last=False)
        return content

    def _split(self, key: str) -> tuple[str, str]:
        """Return the folder of a key, with the prefix, and its name."""
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise InvalidName(f"{key!r} is no path; {self.url} holds files in folders")
        return _split_path(check_key(self._prefix, key, _KEY_BYTES_MAX))


def _split_path(path: str) -> tuple[str, str]:
    """Return what comes before the last name, and the name, with its slash if it has one."""
    folder, slash, name = path.rstrip("/").rpartition("/")
    return folder + slash, name + "/" * path.endswith("/")


def _real_names(name: str) -> set[str]:
    """Return what a file may be called in Drive whose key has this name."""
    names = {name}
    if twin := _TWIN.fullmatch(name):
        names.add(twin["stem"] + (twin["suffix"] or ""))
    names |= {each.removesuffix(suffix) for each in list(names) for suffix, _ in _EXPORTS.values()}
    return names | {each.replace(_SLASH, "/") for each in names}


def _named(files: list[File]) -> dict[str, File]:
    """Return files by the names that they have in keys: folders with a slash, each name once.

    In Drive, several may have the same: the oldest gets it, the others have their id in it.
    """
    named: dict[str, File] = {}
    for file in sorted(files, key=lambda file: (file["createdTime"], file["id"])):
        name = file["name"].replace("/", _SLASH)
        if file["mimeType"] in _EXPORTS:
            name += _EXPORTS[file["mimeType"]][0]
        elif file["mimeType"].startswith(_GOOGLES) and file["mimeType"] != FOLDER:
            continue  # forms, maps and shortcuts: nothing that a file could hold
        slash = "/" * (file["mimeType"] == FOLDER)
        if name + slash in named:
            stem, dot, suffix = name.rpartition(".")
            name = f"{stem} [{file['id']}].{suffix}" if dot and stem else f"{name} [{file['id']}]"
        named[name + slash] = file
    return named


def _info(key: str, file: File) -> ObjectInfo:
    when = datetime.fromisoformat(file["modifiedTime"])
    return ObjectInfo(key, int(file.get("size", -1)), _etag(file), ns_of(when))


def _etag(file: File) -> str:
    """Return what names a version: a revision, which can be read, or a document's number."""
    return str(file.get("headRevisionId") or f"v{file['version']}")


def _md5(source: Content) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for offset in range(0, source.size, _PIECE):
        digest.update(source.read(offset, min(_PIECE, source.size - offset)))
    return digest.hexdigest()


def _require_same(key: str, file: File, digest: str) -> None:
    """Raises ObjectStoreFailed if Drive says that it has stored something else."""
    if file.get("md5Checksum", digest) != digest:
        raise ObjectStoreFailed(f"{key} has another checksum in Drive: store it again")
