"""From a URL to the bucket behind it: the one place where URLs and their options are parsed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from nexus_engine.backends.bucket import Bucket
from nexus_engine.backends.retrying import DEADLINE_S
from nexus_engine.errors import InvalidArgument, NotSupported

ENTRY_POINTS = "nexus.backends"
"""In this group, a package may name a function for a scheme: ``(BucketUrl) -> Bucket``."""
_OPENERS = {
    "file": "nexus_engine.backends.directory:open_directory",
    "gdrive": "nexus_engine.backends.gdrive:open_gdrive",
    "gs": "nexus_engine.backends.gcs:open_gcs",
    "s3": "nexus_engine.backends.s3:open_s3",
}
_EXTRAS = {"gdrive": "gcs", "gs": "gcs", "s3": "s3"}
"""What to install where the SDK of a scheme is not there."""
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(slots=True)
class BucketUrl:
    """A URL taken apart.

    An opener takes the options that it knows and then calls `finish`.
    """

    scheme: str
    host: str
    """The bucket's name, as a rule."""
    path: str
    """Percent-decoded; begins with a slash, or is empty."""
    options: dict[str, str]
    """From the query, and those beside the URL, which win; what nobody has taken yet."""
    taken: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The path as what keys begin with: empty, or it ends in a slash."""
        path = self.path.removeprefix("/")
        return path if not path or path.endswith("/") else f"{path}/"

    def text(self, name: str) -> str:
        """Take an option; empty if it was not given."""
        value = self.options.pop(name, "")
        if value:
            self.taken[name] = value
        return value

    def flag(self, name: str) -> bool | None:
        """Take an option that is on or off; ``None`` if it was not given."""
        value = self.text(name)
        if not value:
            return None
        if value.lower() not in _BOOLEANS:
            raise InvalidArgument(f"{name}={value}: write true or false")
        return _BOOLEANS[value.lower()]

    def endpoint(self) -> str:
        """Take ``endpoint``, the URL of a server, without a last slash; empty if not given."""
        value = self.text("endpoint")
        parts = urlsplit(value)
        if "@" in parts.netloc:
            raise InvalidArgument("no credentials in an endpoint: put them where its tools look")
        if value and (parts.scheme not in ("http", "https") or not parts.netloc):
            raise InvalidArgument(f"endpoint={value}: write a URL, such as http://nas:9000")
        return value.rstrip("/")

    def deadline_s(self) -> float:
        """Take ``deadline_s``, which every server has."""
        value = self.text("deadline_s")
        try:
            seconds = float(value or DEADLINE_S)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise InvalidArgument(f"deadline_s={value}: write seconds, such as 60")
        return seconds

    def finish(self) -> None:
        """Raises InvalidArgument where an option is left that nobody knows."""
        if self.options:
            raise InvalidArgument(f"{self.scheme}:// has no option {', '.join(self.options)}")

    def __str__(self) -> str:
        query = f"?{urlencode(self.taken, safe=':/')}" if self.taken else ""
        return f"{self.scheme}://{self.host}{self.path}{query}"


Opener: TypeAlias = Callable[[BucketUrl], Bucket]


def open_bucket(url: str, options: Mapping[str, str] | None = None) -> Bucket:
    """Return the bucket that a URL names. Nothing is asked of the server yet.

    Args:
        url: Such as ``s3://bucket/prefix?region=eu-central-1`` or ``file:///srv/objects``.
        options: As in the query; for those who keep them apart.

    Raises:
        InvalidArgument: It is no such URL, or has an option that its scheme does not know.
        NotSupported: Nothing here knows the scheme, or its SDK is not installed.
        StoreInaccessible: There are no credentials.
    """
    parsed = parse(url, options or {})
    return _opener(parsed.scheme)(parsed)


def parse(url: str, options: Mapping[str, str]) -> BucketUrl:
    """Take a URL apart.

    Raises:
        InvalidArgument: it is none.
    """
    parts = urlsplit(url)
    # What is wrong is not quoted whole: there may be a password in it.
    if not parts.scheme or not url.startswith(f"{parts.scheme}://"):
        raise InvalidArgument("that is no URL such as s3://bucket/prefix or file:///directory")
    if "@" in parts.netloc:
        raise InvalidArgument(
            f"no credentials in a {parts.scheme}:// URL: put them where the server's own tools look"
        )
    if parts.fragment:
        raise InvalidArgument(f"{parts.scheme}://{parts.netloc}{parts.path}: write # as %23")
    given = dict(parse_qsl(parts.query, keep_blank_values=True)) | dict(options)
    return BucketUrl(parts.scheme, parts.netloc, unquote(parts.path), given)


def _opener(scheme: str) -> Opener:
    if scheme not in _OPENERS:
        return _find_installed(scheme)
    module, _, name = _OPENERS[scheme].partition(":")
    try:
        opener: Opener = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if scheme not in _EXTRAS:
            raise
        raise NotSupported(
            f"{scheme}:// needs the package {error.name}: {sys.executable} -m pip install"
            f" 'nexusfs[{_EXTRAS[scheme]}]'"
        ) from error
    return opener


def _find_installed(scheme: str) -> Opener:
    """Return what a package of somebody else's has registered for a scheme."""
    installed = entry_points(group=ENTRY_POINTS)
    for entry in installed.select(name=scheme):
        opener: Opener = entry.load()
        return opener
    known = ", ".join(f"{name}://" for name in sorted({*_OPENERS, *installed.names}))
    raise NotSupported(f"nothing here knows {scheme}:// (known: {known})")
