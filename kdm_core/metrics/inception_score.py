"""The score of Salimans et al. 2016 from any classifier's class probabilities."""

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.metrics.estimate import Counts, Estimate, linear_estimate

SPLITS = 10


def inception_score(
    probabilities: NDArray[np.floating], counts: Counts, splits: int = SPLITS
) -> Estimate:
    """exp E KL(p(y|x) ‖ p(y)), averaged over splits, from probabilities (n, classes).

    Between 1 and the number of classes. Only with Inception's probabilities is it the Inception
    score; with another classifier's it is named after that classifier.

    Raises:
        DataError: fewer samples than splits.
    """
    n = len(probabilities)
    if n < splits:
        raise DataError(f"{n} samples cannot be scored in {splits} splits: make more samples")
    scores, influence = [], []
    for part in np.array_split(probabilities.astype(np.float64).clip(min=1e-16), splits):
        divergence = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        score = np.exp(divergence.mean())
        scores.append(score)
        # A sample moves the mean of its own split, of n / splits samples.
        influence.append(score * (divergence - divergence.mean()) * (n / len(part) / splits))
    return linear_estimate(float(np.mean(scores)), np.concatenate(influence), counts)
