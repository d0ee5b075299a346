"""Any split of a batch trains the same: over replicas, over micro-batches, over both; also from
a checkpoint of another split, and because every example brings its own noise.

The strategies run in one process of their own (`support/replicas.py`), because a process has to
say how many logical devices it wants before TensorFlow starts.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import TESTS, environment

SUPPORT = TESTS / "support"


def run(*arguments, timeout=600):
    """Output of a script."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment(), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"expected {arguments} to run\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def found():
    return json.loads(run(SUPPORT / "replicas.py").splitlines()[-1])


@pytest.fixture(scope="module")
def differences(found):
    return found["splits"]


def test_every_case_was_run(differences):
    assert len(differences) == 5, f"expected the cases of replicas.py, got {list(differences)}"


@pytest.mark.parametrize("change", ["2 → 1", "1 → 2"])
def test_a_checkpoint_goes_on_on_another_number_of_replicas(found, change):
    assert_goes_on(found, change)


def assert_goes_on(found, change):
    """Weights, moments and averages after it, against one device that was never stopped."""
    value = found["checkpoints"][change]
    assert value < 1e-5, f"{change} replicas: off by {value}, expected less than 1e-5"


@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_replicas_are_given_different_noise_and_timesteps(found, kind):
    """In Keras 3 random layers give every replica the same; ours comes with the data."""
    given = found["streams"][kind]
    assert given["shares"] == [2, 2, 2, 1], f"7 examples on 4 replicas: {given['shares']}"
    assert given["equal"], "the shares put together are not the global batch"
    count = given["examples"]
    assert given["noises"] == count, f"{given['noises']} different noises in {count} examples"
    assert given["timesteps"] > 0.9 * count, f"{given['timesteps']} different timesteps"


@pytest.mark.parametrize(
    "case",
    [
        "2 replicas",
        "3 replicas, batch of 2",
        "2 micro-batches",
        "2 replicas, 2 micro-batches",
        "3 replicas, two shapes",
    ],
)
def test_any_split_trains_as_one_device(differences, case):
    """Weights, losses, gradient norm, metrics, evaluation; the same bits on all replicas."""
    assert_near(case, differences[case])


@pytest.mark.slow
def test_more_splits_and_those_of_whole_networks_train_as_one_device():
    answer = json.loads(run(SUPPORT / "replicas.py", "slow").splitlines()[-1])
    assert_goes_on(answer, "2 → 4")
    for case, found in answer["splits"].items():
        assert_near(case, found)


def assert_near(case, found):
    """Of AdamW also the gradient it is given, which no epsilon has a part in: what is left is the
    rounding of float32's sums, 6e-8 each, on the way through some fifty layers. A distillation
    calls them three times, each on what the one before gave: teacher, target, student.
    """
    calls = 3 if case.startswith("consistency") else 1
    limits = {"gradient": 2e-6 * calls, "gradient of a variable": 5e-6 * calls}
    limits["replicas that differ"] = 1
    for name, value in found.items():
        limit = limits.get(name, 1e-5)
        assert value < limit, f"{case}: {name} is off by {value}, expected less than {limit}"


@pytest.mark.parametrize("number", [1, 3, 4, 6])
def test_four_replicas_share_any_number_of_examples(found, number):
    assert found["shared"][str(number)], f"{number} examples come back changed, or in disorder"


def test_images_of_two_replicas_are_those_of_one(found):
    one, two = (np.array(found["drawn"][name]) for name in "12")
    assert two.shape == (3, 8, 8, 3), f"expected three images of 8×8 pixels, got {two.shape}"
    assert two.std(axis=(1, 2, 3)).min() > 1, "expected images that are not of one colour"
    levels = np.abs(one - two).max()
    assert levels <= 1, f"images of two replicas are {levels} of 255 off those of one"
