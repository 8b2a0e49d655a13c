"""What an operator with a spectral penalty costs in a training step, without encoders and decoder.

    python -m benchmarks.operators

Forward, backward and penalty of KDM-F as it is here, against a dense matrix whose eigenvalues are
solved for in every step, and against KDM-F written with appendix C's real 2d × 2d matrices, which
are put together in every step. The last two compute the same numbers, which is checked. With
`estimate` KDM-F estimates its consistency on random vectors instead of computing it.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import ratio, rounds
from kdm_core.operators import (
    DenseConfig,
    FactorisedConfig,
    KoopmanOperator,
    SpectrumConfig,
    build_operator,
)
from kdm_core.operators.factorised import FactorisedOperator


def ours(operator: KoopmanOperator, z: Tensor) -> Tensor:
    """The part of a step's loss that is the operator's, with something to be minimised for."""
    return operator(z).square().mean() + operator.penalty(torch.randn_like(z))


def with_real_matrices(operator: FactorisedOperator, z: Tensor) -> Tensor:
    """The same of KDM-F by appendix C's formulas as they stand."""

    def block(re: Tensor, im: Tensor) -> Tensor:
        return torch.cat([torch.cat([re, -im], dim=1), torch.cat([im, re], dim=1)])

    values = operator.spectral_values()
    p, inverse = block(operator.p_re, operator.p_im), block(operator.q_re, operator.q_im)
    middle = block(values[:, 0].diag(), values[:, 1].diag())
    padded = torch.cat([z, torch.zeros_like(z)], dim=1)
    pushed = (padded @ inverse.T @ middle.T @ p.T)[:, : z.shape[1]]
    eye = torch.eye(len(p), device=z.device)
    consistency = F.mse_loss(inverse @ p, eye) + F.mse_loss(p @ inverse, eye)
    return pushed.square().mean() + consistency + operator.spectral_penalty()


def step(loss: Callable[[], Tensor], operator: KoopmanOperator) -> None:
    operator.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    spectrum = SpectrumConfig(kind="uniform")
    dense = build_operator(DenseConfig(kind="dense", spectrum=spectrum), arguments.dim)
    factorised = build_operator(FactorisedConfig(kind="factorised", spectrum=spectrum),
                                arguments.dim)
    estimated = build_operator(
        FactorisedConfig(kind="factorised", spectrum=spectrum, estimate=True), arguments.dim)
    assert isinstance(factorised, FactorisedOperator)
    z = torch.randn(arguments.batch, arguments.dim)
    torch.testing.assert_close(with_real_matrices(factorised, z), ours(factorised, z))
    seconds = rounds({
        "KDM-F": lambda: step(lambda: ours(factorised, z), factorised),
        "KDM-F, estimate": lambda: step(lambda: ours(estimated, z), estimated),
        "dense + eigvals": lambda: step(lambda: ours(dense, z), dense),
        "KDM-F, 2d × 2d": lambda: step(lambda: with_real_matrices(factorised, z), factorised),
    }, arguments.rounds)
    print(f"d = {arguments.dim}, batch {arguments.batch}, {torch.get_num_threads()} threads")
    print("median of the rounds' ratios (range):")
    for name, values in seconds.items():
        print(f"{name:16} {ratio(values, seconds['KDM-F'])} of KDM-F, "
              f"{ratio(values, seconds['KDM-F, estimate'])} of KDM-F with estimate")


if __name__ == "__main__":
    main()
