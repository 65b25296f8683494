"""The control file: how requests and replies travel through it, and the side that asks.

A request is one line, then the answer is read to its end. A JSON object
``{"verb": …, "args": {…}}`` is answered in JSON Lines: any number of
``{"progress": [what, done, total]}``, then one ``{"reply": {…}}`` or
``{"error": {"type": …, "message": …}}``. Any other line is a command as ``nexus-ctl`` takes it
(``grammar.py``) and is answered in plain text.
"""

from __future__ import annotations

import json
import os
from typing import Any

from nexus_engine import errors
from nexus_engine.commands import Progress, Reply, Request

CONTROL_PATH = b".nexus/control"
LINE_MAX = 128 << 10
"""Bytes of a request: what the kernel passes on in one piece."""


def encode_request(request: Request) -> bytes:
    return _line({"verb": request.verb, "args": request.args})


def decode_request(text: str) -> Request:
    """Return the request in a JSON line.

    Raises:
        InvalidCommand: Not a request; its arguments are checked when it is carried out.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidCommand(f"not a JSON request: {error}") from error
    match value:
        case {"verb": str(verb), "args": dict(args)} if value.keys() <= {"verb", "args", "cwd"}:
            return Request(verb, args)
        case _:
            raise errors.InvalidCommand('a JSON request is {"verb": "…", "args": {…}}')


def encode_reply(reply: Reply) -> bytes:
    return _line({"reply": reply})


def encode_progress(what: str, done: int, total: int | None) -> bytes:
    return _line({"progress": [what, done, total]})


def encode_error(error: errors.EngineError) -> bytes:
    return _line({"error": {"type": type(error).__name__, "message": str(error)}})


def _line(value: dict[str, Any]) -> bytes:
    # ASCII: names that are not UTF-8 hold lone surrogates, which no encoding takes.
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def ask(mountpoint: bytes, request: Request, progress: Progress) -> Reply:
    """Have a mount's daemon carry out a request.

    Raises:
        EngineError: As the daemon reports it.
        OSError: The control file cannot be used.
    """
    line = encode_request(request)
    if len(line) > LINE_MAX:
        raise errors.InvalidCommand(f"{request.verb}: too many arguments")
    fd = os.open(mountpoint + b"/" + CONTROL_PATH, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.write(fd, line) != len(line):
            raise errors.InvalidCommand(f"{request.verb}: the mount did not take the request")
        for text in os.fdopen(fd, "rb", closefd=False):
            match json.loads(text):
                case {"progress": [str(what), int(done), (int() | None) as total]}:
                    progress(what, done, total)
                case {"reply": dict(reply)}:
                    return reply
                case {"error": {"type": str(name), "message": str(message)}}:
                    raise _error(name, message)
    finally:
        os.close(fd)
    raise errors.InvalidCommand(
        f"{request.verb}: the mount gave no answer; its log says why (nexus-ctl status)"
    )


def _error(name: str, message: str) -> errors.EngineError:
    leaf = getattr(errors, name, None)
    if isinstance(leaf, type) and issubclass(leaf, errors.EngineError):
        return leaf(message)
    return errors.EngineError(message)
