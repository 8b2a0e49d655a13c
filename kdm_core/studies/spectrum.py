"""The operator's eigenvalues: which modes shrink, turn or grow on the way from noise to sample."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.config import Config
from kdm_core.figures.spectrum import spectrum_and_moduli
from kdm_core.studies.base import Finding, Inapplicable, Subject

REAL = 1e-6
"""Imaginary parts up to this share of the largest modulus are rounding of a real eigenvalue."""


class SpectrumConfig(Config):
    """The eigenvalues in the complex plane.

    Attributes:
        near: how far from 1 the modulus of an eigenvalue on the unit circle may be.
    """

    near: float = Field(0.05, gt=0, lt=1)


def spectrum(subject: Subject, config: SpectrumConfig) -> Finding:
    """Figure and numbers of the eigenvalues λ of C.

    Raises:
        Inapplicable: the student has no operator.
    """
    if subject.eigenvalues is None:
        raise Inapplicable("the student has no operator", field="")
    numbers = measure(subject.eigenvalues, config.near)
    return Finding(
        "spectrum", "Eigenvalues of the Koopman operator",
        f"The {numbers['count']} eigenvalues of {subject.name} in the complex plane with the unit "
        "circle, and beside it a histogram of their moduli.",
        caption(numbers, config.near), spectrum_and_moduli(subject.eigenvalues), numbers)


def measure(eigenvalues: NDArray[np.complexfloating], near: float) -> dict[str, Any]:
    """What eigenvalues (d,) say of the modes of C.

    Returns:
        count; largest, median and smallest modulus; shares near the unit circle, outside of it and
        complex; and time_scales, the 10 %, 50 % and 90 % quantile of 1 / |ln |λ||, in which a mode
        changes by a factor e: 1 is the whole way from noise to sample. Modes whose size does not
        change at all have none; the list is empty if all are such.
    """
    moduli = np.abs(eigenvalues).astype(np.float64)
    turning = np.abs(eigenvalues.imag) > REAL * moduli.max()
    with np.errstate(divide="ignore"):
        scales = 1 / np.abs(np.log(moduli[moduli != 1]))
    return {
        "count": len(moduli),
        "largest": float(moduli.max()),
        "median": float(np.median(moduli)),
        "smallest": float(moduli.min()),
        "near_circle": float((np.abs(moduli - 1) <= near).mean()),
        "outside": float((moduli > 1).mean()),
        "complex": float(turning.mean()),
        "time_scales": np.quantile(scales, [0.1, 0.5, 0.9]).tolist() if len(scales) else [],
    }


def caption(numbers: dict[str, Any], near: float) -> str:
    scales = numbers["time_scales"]
    times = "none of them changes its size" if not scales else (
        "a mode changes by a factor e in 1/|ln |λ||, which is "
        f"{scales[1]:.2g} of the way from noise to sample for the median mode and {scales[0]:.2g} "
        f"to {scales[2]:.2g} for four in five")
    return (
        "Each eigenvalue is one mode of the latent: inside the unit circle the operator shrinks "
        "it, on the circle it only turns it, outside it enlarges it. Of "
        f"{numbers['count']} modes {numbers['near_circle']:.0%} are within {near:g} of the circle, "
        f"{numbers['outside']:.0%} outside of it, and {numbers['complex']:.0%} complex, so that "
        f"they turn. The largest modulus is {numbers['largest']:.3f}, the median "
        f"{numbers['median']:.3f}; {times}.")
