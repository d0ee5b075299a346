"""Durations, written and read."""

import pytest

from latentddpm.errors import UserError
from latentddpm.utils.timing import clock, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("1.5H", 5400)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration("--time", text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "30m1h", "-1h", "0s", "1 hour", "1e3s", "٣m"])
def test_what_is_no_duration_is_refused_by_name(text):
    with pytest.raises(UserError, match=r"--time: .*such as 90s"):
        parse_duration("--time", text)


@pytest.mark.parametrize("seconds", [1, 59, 60, 61, 3599, 3600, 5400, 86400, 90000])
def test_what_is_written_is_read_again(seconds):
    again = parse_duration("--time", clock(seconds))
    assert 0 <= seconds - again < 60 or seconds == again, f"{clock(seconds)} is {again}"
    assert clock(0.2) == "1s"
