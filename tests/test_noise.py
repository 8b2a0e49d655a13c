"""Noise is a function of (seed, index)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdm_core.noise import draw

# Fixed vectors: a change of these values would change every pair store ever sampled.
VECTORS = {
    (0, 0): ([0.15929547, -1.77418852], 3),
    (0, 1): ([-0.219866276, 0.109391078], 9),
    (123, 456789): ([-0.316789806, -0.424755841], 8),
}


@pytest.mark.parametrize(("seed", "index"), list(VECTORS))
def test_fixed_vectors(seed: int, index: int) -> None:
    noise, labels = draw(seed, [index], (2,), "float32", num_classes=10)
    expected, label = VECTORS[seed, index]
    np.testing.assert_array_equal(noise[0], np.array(expected, np.float32))
    assert labels[0] == label


@given(seed=st.integers(0, 2**31 - 1), start=st.integers(0, 2**40), cut=st.integers(0, 5))
def test_independent_of_batches_and_order(seed: int, start: int, cut: int) -> None:
    indices = list(range(start, start + 5))
    noise, labels = draw(seed, indices, (3,), "float16", num_classes=7)
    for part in (indices[:cut], indices[cut:]):
        again, same = draw(seed, part[::-1], (3,), "float16", num_classes=7)
        rows = [index - start for index in part[::-1]]
        np.testing.assert_array_equal(again, noise[rows])
        np.testing.assert_array_equal(same, labels[rows])


def test_labels_do_not_change_the_noise() -> None:
    with_labels, _ = draw(3, range(10), (4,), "float32", num_classes=5)
    without, none = draw(3, range(10), (4,), "float32")
    np.testing.assert_array_equal(with_labels, without)
    assert (none == -1).all()


def test_distribution() -> None:
    noise, labels = draw(7, range(5000), (4,), "float32", num_classes=10)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert stats.chisquare(np.bincount(labels, minlength=10)).pvalue > 1e-3
    # Neighbouring pairs and seeds are independent.
    other, _ = draw(8, range(5000), (4,), "float32")
    for a, b in ((noise[:-1], noise[1:]), (noise, other)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
