"""gc beside programs that write: ``python -m … STORE SEED`` empties one pack after the other.

It prints a line for each that is gone.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from pathlib import Path

from nexus_engine import errors
from nexus_engine.meta import gc_queries
from nexus_engine.retention import gc
from nexus_engine.store import Store

ALL_DEAD = 1.1
"""A share that no pack reaches: gc empties what was begun."""


def empty_some_pack(rng: random.Random, store: Store) -> int:
    """Begin to empty a pack, as gc does with those of which most is dead; perhaps go on.

    Returns:
        How many packs are gone.
    """
    packs = gc_queries.all_packs(store.database.connection)
    chosen = [number for number, _ in rng.sample(packs, min(1, len(packs)))]
    store.upkeep(store.database.in_transaction, lambda c: gc_queries.retire(c, chosen))
    if rng.random() < 0.5:
        return 0
    return gc.collect(store, dead_share=ALL_DEAD).packs


def main(path: str, seed: str) -> None:
    rng = random.Random(seed)
    while True:
        store = Store.open(Path(path))
        with suppress(errors.StoreBusy):  # whom it waits for was killed, or has much to do
            for _ in range(empty_some_pack(rng, store)):
                print("gone", flush=True)  # noqa: T201 - its output
        store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
