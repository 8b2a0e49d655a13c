"""Complex eigenvalues λ = exp(−exp ν + iθ), their powers, and products with them.

A complex number is a pair of real tensors here: unlike torch's complex numbers these exist on
every device, under autocast, in ONNX, and for the compiler.
"""

import torch
from torch import Tensor

Complex = tuple[Tensor, Tensor]
"""Real and imaginary part."""


def times(a: Complex, b: Complex) -> Complex:
    """The product a b."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def matmul(a: Complex, b: Complex) -> Complex:
    """The matrix product A B by Gauss's trick, three real products for four."""
    first, second = (a[0] + a[1]) @ b[0], a[0] @ (b[1] - b[0])
    third = a[1] @ (b[0] + b[1])
    return first - third, first + second


def power(nu: Tensor, theta: Tensor, duration: Tensor | float) -> Complex:
    """λ^t for modes (k,), of modulus exp(−t exp ν) and angle tθ.

    Args:
        nu, theta: (k,).
        duration: t, a number or (B, 1).
    """
    modulus, angle = torch.exp(-duration * nu.exp()), duration * theta
    return modulus * angle.cos(), modulus * angle.sin()


def charge(nu: Tensor, theta: Tensor, duration: Tensor | float) -> Complex:
    """(λ^t − 1) / (λ − 1): the share of its effect in unit time that a constant input has had by t.

    It is what z' = a z + u with a = log λ and z(0) = 0 gives, a⁻¹ (e^{ta} − 1) u, for the u whose
    z(1) is 1. So it is 0 at t = 0 and exactly 1 at t = 1.
    """
    top, bottom = power_minus_one(nu, theta, duration), power_minus_one(nu, theta, 1.0)
    norm = bottom[0].square() + bottom[1].square()
    return ((top[0] * bottom[0] + top[1] * bottom[1]) / norm,
            (top[1] * bottom[0] - top[0] * bottom[1]) / norm)


def power_minus_one(nu: Tensor, theta: Tensor, duration: Tensor | float) -> Complex:
    """λ^t − 1, without cancellation where λ^t is near 1."""
    shrinking, angle = torch.expm1(-duration * nu.exp()), duration * theta
    return (shrinking * angle.cos() - 2 * (angle / 2).sin().square(),
            (shrinking + 1) * angle.sin())


def per_latent(duration: Tensor | float, like: Tensor) -> Tensor:
    """A duration, one or (B,), in the dtype and on the device of `like`, to multiply (B, k)."""
    return torch.as_tensor(duration, dtype=like.dtype, device=like.device).reshape(-1, 1)
