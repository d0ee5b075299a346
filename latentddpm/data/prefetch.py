"""Read-ahead: images are decoded by threads a little before their turn, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = min(32, os.cpu_count() or 1)
WINDOW = 8 * WORKERS  # items that are worked on ahead, and
WINDOW_BYTES = 1 << 28  # what they may weigh together

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def map_ahead(
    function: Callable[[Item], Answer],
    items: Iterable[Item],
    *,
    weigh: Callable[[Item], int | None],
    window: int = WINDOW,
) -> Iterator[tuple[Item, Answer | None]]:
    """Each item, in order, with the function's answer.

    Args:
        weigh: bytes that an item takes while it waits; None passes it by, with None for an answer.
        window: the most items to work on ahead.

    Raises:
        BaseException: what `function` or `items` raise; what has not begun then is given up.
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
                # One that leaves for one that came: whoever takes them never finds none begun.
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
