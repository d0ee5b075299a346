"""A batch that does not fit into memory is computed in parts, with the same results."""

import warnings

import numpy as np
import pytest

from latentddpm.data.latents.as_memory_allows import AsMemoryAllows

IMAGES = np.arange(7 * 4, dtype=np.float32).reshape(7, 2, 2, 1)


class Memory:
    """Room for so many images; `seen` are the sizes of the batches that fitted."""

    def __init__(self, room, fits=None):
        self.room, self.seen, self.alone = room, [], 0
        self.encode = AsMemoryAllows(self.function, self.one, lambda images: fits)

    def function(self, images):
        if len(images) > self.room:
            raise MemoryError
        self.seen.append(len(images))
        return images.sum((1, 2))

    def one(self, images):
        self.alone += 1
        return images.sum((1, 2))


@pytest.mark.parametrize(
    ("room", "fits", "sizes"),
    [
        (7, None, [7]),
        (7, 100, [7]),
        (3, None, [3, 3, 3]),  # 7 → 3
        (2, None, [1] * 7),  # 7 → 3 → 1
        (7, 4, [4, 4]),
        (3, 4, [2, 2, 2, 2]),
    ],
)
def test_parts_fit_and_give_the_same(room, fits, sizes):
    memory = Memory(room, fits)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = memory.encode(IMAGES)
        again = memory.encode(IMAGES)
    expected = IMAGES.sum((1, 2))
    assert (found == expected).all(), f"room for {room}: other results than of the whole batch"
    assert (again == expected).all(), f"room for {room}: other results the second time"
    assert memory.seen[: len(sizes)] == sizes, f"parts of {memory.seen}, expected {sizes}"
    assert len(memory.seen) == 2 * len(sizes), "the smaller size was forgotten"
    assert bool(said) == (sizes[0] < 7), f"expected smaller parts to be said, got {said}"


@pytest.mark.parametrize("fits", [None, 0])
def test_a_single_image_that_does_not_fit_is_encoded_another_way(fits):
    memory = Memory(0, fits)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = memory.encode(IMAGES)
    assert "each alone" in str(said[-1].message), f"expected the last way to be said: {said}"
    assert (found == IMAGES.sum((1, 2))).all(), "other results"
    assert memory.alone == len(IMAGES), f"{memory.alone} images alone, expected all"


def test_another_error_is_none_of_memory():
    def broken(images):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        AsMemoryAllows(broken, broken, lambda images: None)(IMAGES)
