"""Copies of a store: backup, restore-store, dump, load; and its index anew.

They work on the store itself, in this process and with its rights: a daemon that wrote wherever it
is told to would be a way around them. It is asked for one thing only, to put into the log what is
open and written to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nexus_engine import errors
from nexus_engine.commands import Request, ignore_progress
from nexus_engine.commands.arguments import to_text
from nexusfuse.ctl import blocks, control, mounts, render
from nexusfuse.ctl.exit_codes import DAMAGE
from nexusfuse.ctl.options import COUNT, DIRECTORY, common_options, shell_only
from nexusfuse.ctl.place import CommandLine, Failure, Place, opened
from nexusfuse.ctl.progress import ProgressLine

if TYPE_CHECKING:
    from nexus_engine.backup.layout import Manifest
    from nexus_engine.check.damage import DamagedFile
    from nexus_engine.check.problems import Problem

KEEP = 7


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--keep", type=COUNT, default=KEEP, show_default=True, help="Generations to keep.")
@click.option("--verify", is_flag=True, help="Read again what was copied before, too.")
@click.option("--list", "list_only", is_flag=True, help="Only show the generations.")
@common_options
@click.pass_obj
def backup(place: Place, directory: str, keep: int, *, verify: bool, list_only: bool) -> None:
    """Copy the store to DIRECTORY, beside whoever uses it; only what is not there yet.

    Each backup is a generation, from which restore-store makes the store as it was.
    """
    line = place.shell()
    line.verb = "backup"
    target = Path(os.path.realpath(directory))
    if list_only:
        _list(line, target)
        return
    store_path = _store_path(line)
    _require_outside(target, store_path)
    _settle(line, store_path)
    from nexus_engine.backup.making import make_backup

    with opened(store_path):
        pass  # what a process that died left unfinished is finished now
    with ProgressLine() as progress:
        made = make_backup(store_path, target, keep=keep, verify=verify, progress=progress)
    manifest = made.manifest
    reply = {
        "directory": str(target),
        **_generation(manifest),
        "first": made.is_first,
        "copied_packs": made.copied_packs,
        "copied_bytes": made.copied_bytes,
        "removed": made.removed,
        "unreadable": made.broken,
        "diverged": made.diverged,
        "damaged_chunks": sum(map(len, manifest.damaged.values())),
        "damaged_files": _files(made.damaged_files),
    }
    _show(line, reply, _backup_blocks(reply))
    if manifest.damaged:
        raise click.exceptions.Exit(DAMAGE)


def _generation(manifest: Manifest) -> dict[str, Any]:
    return {
        "generation": manifest.generation,
        "time_ns": manifest.time_ns,
        "operations": manifest.head,
        "head_hash": manifest.head_hash,
        "packs": len(manifest.packs),
        "packs_bytes": sum(manifest.packs.values()),
        "metadata_bytes": manifest.database.size,
    }


def _list(line: CommandLine, directory: Path) -> None:
    from nexus_engine.backup.layout import opened_for_reading

    with opened_for_reading(directory) as found:
        manifests, broken = found.find()
    generations = [_generation(manifest) for manifest in manifests]
    rows = [
        (
            g["generation"],
            blocks.moment(g["time_ns"]),
            f"op-{g['operations']}",
            render.size(g["packs_bytes"]),
            render.size(g["metadata_bytes"]),
        )
        for g in generations
    ]
    rows += [(name, "its manifest is damaged", "", "", "") for name in broken]
    reply = {"directory": str(directory), "generations": generations, "unreadable": broken}
    _show(line, reply, [blocks.Table(("GENERATION", "TIME", "OP", "PACKS", "METADATA"), rows)])


def _backup_blocks(reply: dict[str, Any]) -> Iterator[blocks.Block]:
    yield from _damaged(reply)
    if reply["unreadable"]:
        yield blocks.Line(
            f"The manifests of {', '.join(reply['unreadable'])} are damaged: remove them, or"
            " nothing is tidied up.",
            "yellow",
        )
    if reply["diverged"] is not None:
        yield blocks.Line(
            f"The store does not continue {reply['diverged']}, the backup before: it was restored,"
            " or its log was cut or rewritten.",
            "yellow",
        )
    if reply["damaged_chunks"]:
        yield blocks.Line(
            f"{reply['damaged_chunks']} chunks of the store are damaged; everything else is in the"
            " backup.",
            "bold red",
        )
    if reply["first"]:
        # Said because the disk that the earlier ones are on may just not be mounted.
        yield blocks.Line(f"This begins a new backup: {reply['directory']} had none.")
    yield blocks.Line(
        f"Backed up op-{reply['operations']} to {reply['directory']} as {reply['generation']}:"
        f" {render.size(reply['copied_bytes'])} of packs copied,"
        f" {render.size(reply['packs_bytes'])} in it; metadata"
        f" {render.size(reply['metadata_bytes'])}.",
        "bold",
    )


@click.command("restore-store")
@click.argument("directory", metavar="BACKUP|URL", type=DIRECTORY)
@click.argument("new_store", type=DIRECTORY, required=False)
@click.option("--generation", metavar="NAME", help="Which one; default: the newest.")
@common_options
@click.pass_obj
def restore_store(
    place: Place, directory: str, new_store: str | None, generation: str | None
) -> None:
    """Make the store NEW_STORE, a new or empty directory, from a backup; and check it.

    With the URL of a bucket that has a store's packs: of the latest copy of its metadata there. The
    packs stay in the bucket, and it is this store's from now on.
    """
    line = place.shell()
    line.verb = "restore-store"
    path = _new_store(line, new_store)
    if "://" in directory:
        if generation is not None:
            raise click.UsageError("--generation is of a backup")
        _restore_from_bucket(line, directory, path)
        return
    source = Path(os.path.realpath(directory))
    from nexus_engine.backup import restoring

    with ProgressLine() as progress:
        restored = restoring.restore_store(source, path, generation=generation, progress=progress)
    reply = {
        "store": str(path),
        **_generation(restored.manifest),
        "copied_bytes": restored.copied_bytes,
        "problems": _problems(restored.problems),
        "damaged_files": _files(restored.damaged_files),
    }
    verdict = "with damage" if reply["problems"] else "and checked it"
    summary = f"Restored op-{reply['operations']} of {reply['generation']} to {path}, {verdict}."
    _show(line, reply, [*_damaged(reply), blocks.Line(summary, "bold")])
    if reply["problems"]:
        raise click.exceptions.Exit(DAMAGE)


def _restore_from_bucket(line: CommandLine, url: str, path: Path) -> None:
    from nexus_engine.backup.from_bucket import restore_from_bucket

    with ProgressLine() as progress:
        taken = restore_from_bucket(url, path, progress=progress)
    latest = taken.latest
    reply = {
        "store": str(path),
        "packs": url,
        "operations": latest.head,
        "head_hash": latest.head_hash,
        "time_ns": latest.time_ns,
        "problems": _problems(taken.problems),
        "damaged_files": [],
    }
    verdict = "with damage" if reply["problems"] else "and checked it"
    summary = f"Restored op-{latest.head} to {path}, whose packs stay in {url}, {verdict}."
    _show(line, reply, [*_damaged(reply), blocks.Line(summary, "bold")])
    if reply["problems"]:
        raise click.exceptions.Exit(DAMAGE)


@click.command()
@common_options
@click.pass_obj
def dump(place: Place) -> None:
    """Write the metadata to standard output: names, history, log, as JSON lines.

    With the directory packs of the store, nexus-ctl load makes the same store of it.
    """
    line = place.shell()
    line.verb = "dump"
    path = _store_path(line)
    _settle(line, path)
    from nexus_engine.backup import dump as dumping

    _finish_what_others_left(path)
    with ProgressLine() as progress:
        dumping.dump(path, sys.stdout.buffer.write, progress)
        sys.stdout.buffer.flush()


def _finish_what_others_left(path: Path) -> None:
    """Recover a store; one that is too damaged for that is read as it is."""
    try:
        with opened(path):
            pass
    except errors.IntegrityError as error:
        click.echo(f"nexus-ctl: the store is read as it is: {error}", err=True)


@click.command()
@click.argument("new_store", type=DIRECTORY, required=False)
@click.option("--packs", type=DIRECTORY, metavar="DIR", help="Copy the packs from here.")
@common_options
@click.pass_obj
def load(place: Place, new_store: str | None, packs: str | None) -> None:
    """Make the store NEW_STORE from a dump on standard input; and check it.

    NEW_STORE is a new or empty directory, or holds nothing but packs.
    """
    line = place.shell()
    line.verb = "load"
    path = _new_store(line, new_store)
    from nexus_engine.backup import dump as dumping

    with ProgressLine() as progress:
        loaded = dumping.load(
            sys.stdin.buffer,
            path,
            packs=None if packs is None else Path(packs),
            progress=progress,
        )
    reply = {
        "store": str(path),
        "operations": loaded.header.head,
        "head_hash": loaded.header.head_hash,
        "rows": loaded.rows,
        "packs": loaded.packs,
        "chunks": loaded.chunks,
        "gaps": [gap._asdict() for gap in loaded.gaps],
        "problems": _problems(loaded.problems),
    }
    verdict = "with damage" if reply["problems"] else "and checked it"
    summary = f"Loaded op-{loaded.header.head} into {path}, {verdict}."
    _show(line, reply, [*_damaged(reply), blocks.Line(summary, "bold")])
    if reply["problems"]:
        raise click.exceptions.Exit(DAMAGE)


def rebuild_index(line: CommandLine) -> None:
    """Write the index of chunks anew, from the packs; for ``fsck --rebuild-index``."""
    line.verb = "fsck"
    if line.store is None:
        raise Failure(
            "the store must be nobody's meanwhile: unmount it, then"
            " nexus-ctl --store DIR fsck --rebuild-index"
        )
    from nexus_engine.backup import index
    from nexus_engine.store import Store

    store = Store.open(line.store)
    try:
        with ProgressLine() as progress:
            rebuilt = index.rebuild_index(store, progress)
    finally:
        store.close()
    reply = {
        "packs": rebuilt.packs,
        "chunks": rebuilt.chunks,
        "gaps": [gap._asdict() for gap in rebuilt.gaps],
    }
    gaps = [
        blocks.Line(f"gap  pack {gap.pack} from byte {gap.start} to {gap.end}: no records there")
        for gap in rebuilt.gaps
    ]
    summary = f"Index made anew: packs {rebuilt.packs:,}, chunks {rebuilt.chunks:,}."
    _show(line, reply, [*gaps, blocks.Line(summary)])


# -- parts --


def _store_path(line: CommandLine) -> Path:
    return line.store or Path(os.fsdecode(line.mount.store))


def _new_store(line: CommandLine, new_store: str | None) -> Path:
    if (new_store is None) == (line.store is None):
        raise click.UsageError("name the new store once: NEW_STORE, or --store DIR")
    return Path(os.path.realpath(new_store or line.store or ""))


def _require_outside(directory: Path, store: Path) -> None:
    """Refuse to back a store up into itself."""
    path = os.fsencode(directory)
    if mounts.is_within(path, os.path.realpath(os.fsencode(store))):
        raise Failure(f"{directory} is in the store itself: a backup belongs on another disk")
    mount = mounts.mount_of(path)
    if mount.is_nexus and _is_same(mount.store, store):
        raise Failure(f"{directory} is in the mount of the store: a backup belongs on another disk")


def _is_same(store: bytes, path: Path) -> bool:
    return os.path.realpath(store) == os.path.realpath(os.fsencode(path))


def _settle(line: CommandLine, store: Path) -> None:
    """Have every mount of a store put into the log what is open and written to.

    A mount that this user cannot enter, or of another machine's view, is as it is in the log.
    """
    if line.store is None:
        line.ask(Request("status", {}))
        return
    for mount in mounts.read_mounts():
        if not mount.is_nexus or mount.read_only or not _is_same(mount.store, store):
            continue
        if mounts.probe(mount, mounts.ANSWER_LIMIT_S) is mounts.Health.SERVES:
            try:
                control.ask(mount.path, Request("status", {}), ignore_progress)
            except (OSError, errors.EngineError) as error:
                path = render.printable(os.fsdecode(mount.path))
                click.echo(
                    f"nexus-ctl: {path} was not asked ({error}): of files that are open and"
                    " written to there, the last version is taken",
                    err=True,
                )


def _show(line: CommandLine, reply: dict[str, Any], blocks: Iterable[blocks.Block]) -> None:
    if line.json:
        click.echo(json.dumps(reply))
    else:
        render.show(list(blocks))


def _problems(problems: list[Problem]) -> list[dict[str, Any]]:
    return [problem._asdict() for problem in problems]


def _files(files: list[DamagedFile]) -> list[dict[str, Any]]:
    return [
        {
            "ino": file.ino,
            "path": None if file.path is None else to_text(file.path),
            "until": file.seq,
        }
        for file in files
    ]


def _damaged(reply: dict[str, Any]) -> Iterator[blocks.Block]:
    from nexus_engine.check.damage import FILES_SHOWN

    for problem in reply.get("problems", ()):
        text = f"{problem['code']}  {problem['where']}: {problem['message']}"
        yield blocks.Line(text, "red")
    for file in reply.get("damaged_files", ()):
        path = f"inode {file['ino']}" if file["path"] is None else blocks.shown_path(file["path"])
        when = "" if file["until"] is None else f", as it was until op-{file['until']}"
        yield blocks.Line(f"damaged  {path}{when}", "red")
    if len(reply.get("damaged_files", ())) == FILES_SHOWN:
        yield blocks.Line(f"These are the first {FILES_SHOWN:,}; there may be more.", "red")


COMMANDS = [shell_only(command) for command in (backup, restore_store, dump, load)]
