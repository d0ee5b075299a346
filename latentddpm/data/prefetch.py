"""Prefetching: threads apply a function to the next items, whose results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = min(32, os.cpu_count() or 1)
WINDOW = 8 * WORKERS  # items that are worked on at a time, at most
WINDOW_BYTES = 1 << 28  # of these items together, at most

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def map_ahead(
    function: Callable[[Item], Answer],
    items: Iterable[Item],
    *,
    weigh: Callable[[Item], int | None],
    window: int = WINDOW,
) -> Iterator[tuple[Item, Answer | None]]:
    """Map a function over items with threads that work ahead; results come in order.

    Args:
        function: item → result.
        items: any iterable.
        weigh: item → bytes that it takes in memory, or None for an item that the function is not
            applied to; its result is None.
        window: number of items to work on ahead, at most.

    Returns:
        An iterator of (item, result).

    Raises:
        BaseException: from `function` or `items`; items that have not begun are dropped.
    """
    waiting: deque[tuple[Item, int, Future[Answer] | None]] = deque()
    weight = number = 0

    def first() -> tuple[Item, Answer | None]:
        nonlocal weight, number
        item, size, future = waiting.popleft()
        weight, number = weight - size, number - (future is not None)
        return item, future and future.result()

    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                size = weigh(item)
                if size is None:
                    waiting.append((item, 0, None))
                else:
                    waiting.append((item, size, pool.submit(function, item)))
                    weight, number = weight + size, number + 1
                # One item out for one in, so that results come steadily and work never runs out.
                if waiting[0][2] is not None and waiting[0][2].done():
                    yield first()
                while waiting and (
                    waiting[0][2] is None or number > window or weight > WINDOW_BYTES
                ):
                    yield first()
            while waiting:
                yield first()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
