"""Agreement of edges and of masks: closed forms, and distances pixel by pixel."""

import numpy as np
import pytest

from latentddpm.evaluation.metrics.edges import edge_f1, edge_scores, intersection_over_union


def line(column, height=8, width=8):
    """A vertical line, (1, height, width)."""
    picture = np.zeros((1, height, width), bool)
    picture[:, :, column] = True
    return picture


@pytest.mark.parametrize(
    ("distance", "tolerance", "expected"),
    [(0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 1, 0), (2, 2, 1), (3, 2.9, 0)],
)
def test_a_line_beside_the_wanted_one_counts_up_to_the_tolerance(distance, tolerance, expected):
    assert edge_f1(line(2 + distance), line(2), tolerance) == [expected]


def test_half_a_line_has_full_precision_and_half_the_recall():
    half = line(3)
    half[:, 4:] = False
    scores = edge_scores(half, line(3), tolerance=0)
    np.testing.assert_allclose(np.ravel(scores), [1, 0.5, 2 / 3])
    other = edge_scores(line(3), half, tolerance=0)
    np.testing.assert_allclose(np.ravel(other), [0.5, 1, 2 / 3])


def test_a_stray_line_costs_precision_alone():
    scores = edge_scores(line(1) | line(6), line(1))
    np.testing.assert_allclose(np.ravel(scores), [0.5, 1, 2 / 3])


def test_edges_do_not_reach_around_the_border_or_into_another_image():
    found = np.concatenate([line(0), line(7)])
    np.testing.assert_array_equal(edge_f1(found, found[::-1], tolerance=3), [0, 0])


def test_diagonal_neighbours_are_further_than_one_pixel():
    found, wanted = np.zeros((2, 1, 4, 4), bool)
    found[0, 1, 1] = wanted[0, 2, 2] = True
    answers = [edge_f1(found, wanted, tolerance)[0] for tolerance in (1, 1.4, 1.5)]
    assert answers == [0, 0, 1]


def test_nothing_wanted_and_nothing_found_agree():
    none = np.zeros((1, 8, 8), bool)
    assert edge_f1(none, none) == [1]
    assert intersection_over_union(none, none) == [1]
    np.testing.assert_array_equal(np.ravel(edge_scores(none, line(2))), [1, 0, 0])
    np.testing.assert_array_equal(np.ravel(edge_scores(line(2), none)), [0, 1, 0])


@pytest.mark.parametrize("tolerance", [0, 1, 2, 2.5])
def test_scores_are_those_of_the_distances_between_pixels(tolerance):
    numbers = np.random.default_rng(0)
    found, wanted = numbers.random((2, 5, 12, 10)) < 0.04
    scores = edge_scores(found, wanted, tolerance)
    for i in range(5):
        f, w = (np.argwhere(edges[i]) for edges in (found, wanted))
        distances = np.linalg.norm(f[:, None] - w[None], axis=-1)
        precision = np.mean(distances.min(axis=1) <= tolerance)
        recall = np.mean(distances.min(axis=0) <= tolerance)
        assert (scores.precision[i], scores.recall[i]) == (precision, recall)


def test_intersection_over_union_of_squares_that_overlap_by_a_quarter():
    found, wanted = np.zeros((2, 1, 8, 8), bool)
    found[0, 0:4, 0:4] = wanted[0, 2:6, 2:6] = True
    np.testing.assert_allclose(intersection_over_union(found, wanted), [4 / (16 + 16 - 4)])
    np.testing.assert_allclose(intersection_over_union(found, ~found), [0])


@pytest.mark.parametrize("measure", [edge_f1, intersection_over_union])
def test_other_arrays_than_masks_of_one_shape_are_refused(measure):
    with pytest.raises(ValueError, match=r"expected two bool arrays \(N, H, W\)"):
        measure(line(2), line(2)[0])
    with pytest.raises(ValueError, match="got uint8"):
        measure(line(2).astype(np.uint8), line(2))


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="expected 0 or more pixels"):
        edge_f1(line(2), line(2), tolerance=-1)
