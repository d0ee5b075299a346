"""Images looked at in parallel, a bounded way ahead of whoever uses what was seen, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from latentddpm.data.sources.base import Entry

WORKERS = min(32, os.cpu_count() or 1)
WINDOW = 8  # images a worker that are read ahead, and
WINDOW_BYTES = 1 << 28  # what they may weigh together

Item = TypeVar("Item")
Seen = TypeVar("Seen")


def map_ahead(
    look: Callable[[Entry], Seen], items: Iterable[tuple[Item, Entry | None]]
) -> Iterator[tuple[Item, Seen | None]]:
    """Each item, in order, with what `look` gives of its image; None where it has none.

    Raises:
        BaseException: what `look` or `items` raise; what has not begun then is given up.
    """
    waiting: deque[tuple[Item, int, Future[Seen] | None]] = deque()
    weight = images = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item, entry in items:
                if entry is None:
                    waiting.append((item, 0, None))
                else:
                    waiting.append((item, entry.size, pool.submit(look, entry)))
                    weight, images = weight + entry.size, images + 1
                while waiting and (
                    waiting[0][2] is None
                    or waiting[0][2].done()
                    or images > WINDOW * WORKERS
                    or weight > WINDOW_BYTES
                ):
                    first, size, seen = waiting.popleft()
                    weight, images = weight - size, images - (seen is not None)
                    yield first, seen and seen.result()
            for first, _, seen in waiting:
                yield first, seen and seen.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
