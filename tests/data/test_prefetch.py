"""Items come in order with their answers, a bounded number of them ahead."""

import itertools
import threading
import time

import pytest

from latentddpm.data.prefetch import WINDOW_BYTES, map_ahead


def test_answers_come_in_order_and_what_weighs_nothing_passes_by():
    found = list(map_ahead(str, range(100), weigh=lambda n: None if n % 3 == 0 else n))
    expected = [(n, None if n % 3 == 0 else str(n)) for n in range(100)]
    assert found == expected, "other items, answers or another order"


@pytest.mark.parametrize(("weight", "window"), [(1, 4), (WINDOW_BYTES // 4, 100)])
def test_no_more_than_the_window_is_taken_ahead(weight, window):
    taken, open_up = [], threading.Event()

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    answers = map_ahead(
        lambda number: open_up.wait(10), items(), weigh=lambda number: weight, window=window
    )
    threading.Timer(0.3, open_up.set).start()
    assert next(answers) == (0, True), "not the first"
    assert len(taken) == 5, f"{len(taken)} items were taken, expected four ahead of the first"
    assert len(list(answers)) == 49, "some are lost"


def test_whoever_takes_slowly_finds_the_next_ones_done():
    begun, ahead = [], threading.Event()

    def items():
        for number in range(40):
            if number == 3:
                ahead.set()
            yield number

    def work(number):
        ahead.wait(60)  # the first is not done before three more are taken
        begun.append(number)

    for number, _ in map_ahead(work, items(), weigh=lambda number: 1, window=12):
        deadline = time.monotonic() + 60
        while len(begun) < min(number + 3, 40) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(begun) >= min(number + 3, 40), f"nothing is ready behind item {number}"


def test_an_error_comes_in_its_turn_and_ends_the_rest():
    def fail(number):
        if number == 5:
            raise KeyError(number)
        return number

    answers = map_ahead(fail, itertools.count(), weigh=lambda number: 1)
    assert [number for number, _ in itertools.islice(answers, 5)] == [0, 1, 2, 3, 4], "before it"
    with pytest.raises(KeyError):
        next(answers)
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(str, (1 // number for number in (1, 0)), weigh=lambda number: 1))
