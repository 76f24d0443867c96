"""The order in which the model travels: centers in a cycle, and the batches of a center."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np


def travelling_order(
    centers: Iterable[str], seed: int, cycles: Iterable[int], resumed_at: dict | None = None
) -> Iterator[tuple[int, list[str], np.random.RandomState]]:
    """The published visiting order.

    Before the first cycle the centers (in order of first appearance) are shuffled with
    ``RandomState(seed)``; in every cycle ``RandomState(seed + cycle)`` shuffles that same array again.
    Yields, for each of ``cycles``: the cycle, its centers in visiting order, and the cycle's generator, which
    the caller goes on using for the subjects (:func:`batches`), center by center. A run that goes on gives as
    ``resumed_at`` what :func:`position` told; what was visited before is left out.
    """
    order = np.array(list(centers), dtype=object)
    np.random.RandomState(seed).shuffle(order)
    for cycle in cycles:
        generator = np.random.RandomState(seed + cycle)
        generator.shuffle(order)
        if resumed_at is None or cycle > resumed_at["cycle"]:
            yield cycle, list(order), generator
        elif cycle == resumed_at["cycle"]:
            if resumed_at["generator"] is not None:
                generator.set_state(resumed_at["generator"])
            yield cycle, list(order[len(order) - resumed_at["centers_left"] :]), generator


def position(cycle: int, centers_left: int, generator: np.random.RandomState) -> dict:
    """Where a run is in the travelling order: a dict of plain values."""
    state: Any = generator.get_state()  # a tuple
    name, keys, *rest = state
    return {"cycle": cycle, "centers_left": centers_left, "generator": [name, keys.tolist(), *rest]}


def start_of_cycle(cycle: int, centers: Collection[str]) -> dict:
    """The position before the first center of a cycle."""
    return {"cycle": cycle, "centers_left": len(centers), "generator": None}


def batches(
    subjects: list[str], batch_size: int, generator: np.random.RandomState, trains_short_batch: bool
) -> list[list[str]]:
    """Shuffle a center's subjects and cut them into batches, a list of lists of ids.

    A center smaller than ``batch_size`` is one batch. The last, short batch of a larger one is dropped
    unless ``trains_short_batch``.
    """
    shuffled = np.array(subjects, dtype=object)
    generator.shuffle(shuffled)
    size = min(batch_size, len(shuffled))
    if size == 0:
        return []
    end = len(shuffled) if trains_short_batch else len(shuffled) - len(shuffled) % size
    return [list(shuffled[start : start + size]) for start in range(0, end, size)]
