"""The score of Salimans et al. 2016 from any classifier's class probabilities."""

import numpy as np
from numpy.typing import NDArray


def inception_score(probabilities: NDArray[np.floating], splits: int = 10) -> float:
    """exp E KL(p(y|x) ‖ p(y)), averaged over splits, from probabilities (n, classes).

    Between 1 and the number of classes. Only with Inception's probabilities is it the Inception
    score; with another classifier's it is named after that classifier.
    """
    p = probabilities.astype(np.float64).clip(min=1e-16)
    scores = []
    for part in np.array_split(p, splits):
        divergence = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores))
