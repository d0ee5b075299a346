"""Metrics on arrays: closed forms, what they owe by definition, and what other tools answer."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from metric_sets import feature_sets, image_pairs

from latentddpm.errors import UserError
from latentddpm.evaluation.metrics import kernel, pairwise
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import kernel_distance, paired_kernel_distance
from latentddpm.evaluation.metrics.precision_recall import density_coverage, precision_recall
from latentddpm.evaluation.metrics.similarity import psnr, rmse, ssim

HERE = Path(__file__).parents[1]
GOLDEN = HERE / "golden" / "metrics.json"


def ours():
    """Everything that the golden file holds, by this package."""
    pairs, (real, generated) = image_pairs(), feature_sets()
    statistics = [Statistics().add(features) for features in (real, generated)]
    return {
        "rmse": rmse(*pairs),
        "psnr": psnr(*pairs),
        "ssim": ssim(*pairs),
        "frechet": frechet_distance(*statistics),
        "kernel": kernel_distance(real, generated).value,
        "paired kernel": paired_kernel_distance(real, generated).value,
        **precision_recall(real, generated, k=3)._asdict(),
        **density_coverage(real, generated, k=5)._asdict(),
    }


def check_answers(expected):
    found = ours()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-7, err_msg=name)


def test_metrics_agree_with_other_tools():
    check_answers(json.loads(GOLDEN.read_text()))


@pytest.mark.reference
def test_metrics_agree_with_other_tools_as_installed(tmp_path):
    for tool in ("skimage", "scipy", "torch", "torch_fidelity"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    script, target = HERE / "golden" / "make_metrics_golden.py", tmp_path / "metrics.json"
    subprocess.run([sys.executable, script, target], check=True)
    check_answers(json.loads(target.read_text()))


# --- Images --------------------------------------------------------------------------------


def test_equal_images_are_as_close_as_can_be():
    images, _ = image_pairs()
    np.testing.assert_array_equal(rmse(images, images), 0)
    np.testing.assert_array_equal(psnr(images, images), np.inf)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-12)


def test_a_constant_error_has_its_closed_form():
    images = np.full((2, 16, 12, 3), 100, np.uint8)
    np.testing.assert_allclose(rmse(images, images + 5), 5)
    np.testing.assert_allclose(psnr(images, images + 5), 20 * np.log10(51))
    # Without variance only the term of the means is left.
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 105 + c1) / (100**2 + 105**2 + c1)
    np.testing.assert_allclose(ssim(images, images + 5), expected)


def test_images_of_other_kinds_are_refused():
    images, references = image_pairs()
    with pytest.raises(UserError, match="at least 11×11, not 10×24"):
        ssim(images[:, :10], references[:, :10])
    with pytest.raises(ValueError, match="expected two uint8 arrays"):
        rmse(images / 255, references / 255)
    with pytest.raises(ValueError, match="expected two uint8 arrays"):
        rmse(images, references[:1])


# --- Features ------------------------------------------------------------------------------


def gaussian(mean, variances):
    """Statistics that are exactly those of a diagonal Gaussian."""
    corners = np.concatenate([np.eye(len(mean)), -np.eye(len(mean))])
    deviations = np.sqrt(np.asarray(variances) * (len(corners) - 1) / 2)
    return Statistics().add(np.asarray(mean) + corners * deviations)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form():
    a, b = gaussian([1.0, -2.0, 0.0], [4.0, 1.0, 0.0]), gaussian([0.0, 0.0, 0.5], [1.0, 9.0, 2.0])
    expected = 1 + 4 + 0.25 + (2 - 1) ** 2 + (1 - 3) ** 2 + 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9), "not symmetric"
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_statistics_of_batches_are_those_of_the_whole():
    features, _ = feature_sets()
    features = features + 1e4  # a naive sum of squares would lose eight digits
    batches = Statistics()
    for batch in (features[:1], features[1:8], features[8:]):
        batches.add(batch)
    assert batches.count == len(features)
    np.testing.assert_allclose(batches.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(batches.covariance, np.cov(features.T), rtol=1e-7, atol=1e-9)


def stream(rng, count, repeats, shift=0.0):
    return rng.normal(shift, 1.0, (repeats, count, 4))


def test_the_kernel_distance_has_no_bias_and_knows_its_error():
    """On many small draws of one and of two distributions."""
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.0):
        sets = zip(stream(rng, 20, 400), stream(rng, 30, 400, shift), strict=True)
        found = [kernel_distance(x, y) for x, y in sets]
        values = np.array([distance.value for distance in found])
        # E (x·y / d + 1)³ for x, y of N(a, 1), N(b, 1): the moments of x·y, by a large draw.
        big, other = stream(rng, 200_000, 2), stream(rng, 200_000, 2, shift)
        means = [
            ((x * y).sum(-1) / 4 + 1) ** 3 for x, y in ((*big,), (*other,), (big[0], other[0]))
        ]
        expected = means[0].mean() + means[1].mean() - 2 * means[2].mean()
        spread = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * spread, f"shift {shift}: biased"
        inside = [low <= expected <= high for low, high in (one.interval for one in found)]
        assert np.mean(inside) > 0.88, f"shift {shift}: intervals hold it in {np.mean(inside)}"
        errors = np.array([distance.standard_error for distance in found])
        ratio = np.sqrt(np.mean(errors**2)) / values.std()
        assert 0.9 < ratio < 1.6, (
            f"shift {shift}: the jackknife's error is {ratio} of the true one"
        )


def test_pairs_are_no_closer_than_their_distributions():
    """y_i made from x_i, with the same distribution: 0 on average only without i = j."""
    rng = np.random.default_rng(2)
    x = stream(rng, 15, 300)
    y = 0.8 * x + 0.6 * stream(rng, 15, 300)
    found = [paired_kernel_distance(*pair) for pair in zip(x, y, strict=True)]
    values = np.array([distance.value for distance in found])
    spread = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * spread, f"biased: {values.mean()} ± {spread}"
    blind = np.mean([kernel_distance(*pair).value for pair in zip(x, y, strict=True)])
    assert blind < -4 * spread, f"expected pairs to mislead the other estimate: {blind}"
    x, y = x[0, :7], y[0, :7]
    left = [paired_kernel_distance(np.delete(x, i, 0), np.delete(y, i, 0)).value for i in range(7)]
    error = paired_kernel_distance(x, y).standard_error
    assert error == pytest.approx((6 * np.var(left)) ** 0.5, rel=1e-9), "not the jackknife's"


def test_the_jackknife_is_what_leaving_out_gives():
    x, y = feature_sets(8)
    x = x[:6]
    variance = sum(
        (len(left) - 1) * np.var([kernel_distance(*one).value for one in left])
        for left in (
            [(np.delete(x, i, 0), y) for i in range(len(x))],
            [(x, np.delete(y, i, 0)) for i in range(len(y))],
        )
    )
    assert kernel_distance(x, y).standard_error == pytest.approx(variance**0.5, rel=1e-9)


def test_manifolds_on_a_line():
    """Balls of radius 1 around 0 … 9, of which generated samples reach the first four."""
    real = np.arange(10.0)[:, None]
    generated = np.array([[0.5], [1.5], [2.5]])
    assert precision_recall(real, generated, k=1) == (1, 0.4)
    assert density_coverage(real, generated, k=1) == (2, 0.4)
    # The ball of a generated outlier takes in everything: recall cannot see that, coverage can.
    generated = np.append(generated, [[100.0]], axis=0)
    assert precision_recall(real, generated, k=1) == (0.75, 1)
    assert density_coverage(real, generated, k=1) == (1.5, 0.4)


def test_equal_distributions_have_the_published_expectations():
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(2, 1000, 8))
    density, coverage = density_coverage(real, generated, k=5)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_blocks_do_not_show(monkeypatch):
    whole = ours()
    for module in (kernel, pairwise):
        monkeypatch.setattr(module, "BLOCK", 7)
    for name, value in ours().items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-10, err_msg=name)


def test_too_few_samples_are_counted_in_one_line():
    few = np.zeros((3, 2))
    cases = {
        "Fréchet distance needs at least 2 images, not 1": lambda: (
            Statistics().add(few[:1]).covariance
        ),
        "kernel distance needs at least 3 images, not 2": lambda: kernel_distance(few, few[:2]),
        "precision/recall needs at least 4 images, not 3": lambda: precision_recall(few, few),
        "density/coverage needs at least 6 images, not 3": lambda: density_coverage(few, few),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message):
            call()


def test_features_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="of pairs: 4 and 5 samples"):
        paired_kernel_distance(np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="of one d"):
        pairwise.check_features("kernel distance", 3, np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        pairwise.check_features("kernel distance", 3, np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match="width 3 after those of 2"):
        Statistics().add(np.zeros((4, 2))).add(np.zeros((4, 3)))
