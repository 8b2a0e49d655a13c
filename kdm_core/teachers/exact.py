"""Teachers whose denoiser is known in closed form: truths for tests and studies.

They work on x = x₀ + sigma ε, as `Denoiser` does, in the dtype of the state. They learn nothing:
`fit_mixture` and `fit_data` make them of a training set, and what they know of it lies in buffers.
"""

from abc import abstractmethod
from collections.abc import Callable
from math import inf
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.compute import state_dtype
from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import one_hot
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Path
from kdm_core.solvers.grids import KarrasGrid, SigmaGrid
from kdm_core.teachers.base import Teacher, per_sample

ROWS = 4096  # of the data that are compared with a batch at once


class ExactConfig(Config):
    """What exact teachers share.

    Attributes:
        grid: time grid where nothing else is said.
    """

    grid: Annotated[SigmaGrid, Field(discriminator="kind")] = KarrasGrid(kind="karras")


class GaussianMixtureConfig(ExactConfig):
    """A mixture of Gaussians with full covariances, one for each class if there are classes.

    Attributes:
        components: as many as classes, or any number if there are none.
    """

    kind: Literal["gaussian_mixture"]
    components: int = Field(ge=1)


class FiniteDataConfig(ExactConfig):
    """The optimal denoiser of `count` samples."""

    kind: Literal["finite_data"]
    count: int = Field(ge=1)


class ExactTeacher(Teacher):
    """A closed-form E[x₀ | x]; its time is the noise level sigma, down to 0."""

    config: ExactConfig
    end = 0.0
    lowest, highest = 0.0, inf
    ends_singular = True

    def __init__(self, config: ExactConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.default_grid, self.start = config.grid, config.grid.sigma_max

    @abstractmethod
    def posterior_mean(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """E[x₀ | x] (B, D) for flat states (B, D), positive sigma (B, 1) or (1, 1), and labels."""

    def path(self, time: Tensor) -> Path:
        return Path(torch.ones_like(time), time)

    def time_at(self, level: Tensor) -> Tensor:
        return level

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        flat = x.flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            return self.posterior_mean(flat, per_sample(time, flat),
                                       self.spec.told(labels)).reshape(x.shape)

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """dx/dsigma = (x − E[x₀ | x]) / sigma."""
        return (x - self.denoise(x, time, labels)) / per_sample(time, x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A module moves as it is, which fails where the device has no float64.
        def move(tensor: Tensor) -> Tensor:
            widest = state_dtype(fn(torch.empty(0)).device)
            return fn(tensor.to(widest) if tensor.dtype == torch.float64 else tensor)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class GaussianMixture(ExactTeacher):
    """The mixture Σ w_k N(mean_k, V_k diag(s_k) V_kᵀ); fresh, each component is N(0, sigma_data²).

    A label selects its component, no label (−1 or None) means the whole mixture.
    """

    config: GaussianMixtureConfig
    log_weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    variances: Tensor  # (K, D), the s
    axes: Tensor  # (K, D, D), the V, one axis a column

    def __init__(self, config: GaussianMixtureConfig, spec: SampleSpec) -> None:
        """
        Raises:
            KDMError: there are classes, but not as many components.
        """
        super().__init__(config, spec)
        k, size = config.components, torch.Size(spec.sample_shape).numel()
        if spec.num_classes not in (0, k):
            raise KDMError(f"teacher.model.components: {k}, but the samples have "
                           f"{spec.num_classes} classes; set it to {spec.num_classes}")
        weights, axes = torch.ones(k, dtype=torch.float64) / k, torch.eye(size, dtype=torch.float64)
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("means", torch.zeros_like(axes[:1]).repeat(k, 1))
        self.register_buffer("variances", torch.full_like(self.means, spec.sigma_data**2))
        self.register_buffer("axes", axes.repeat(k, 1, 1))

    def class_weights(self) -> list[tuple[Tensor, int]]:
        own = self.log_weights, self.means, self.variances, self.axes
        return [(weight, 0) for weight in own] if self.spec.num_classes else []

    def describe(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set the mixture.

        Args:
            weights: (K,) positive, in any proportion.
            means: (K, D).
            covariances: (K, D, D), symmetric and positive semi-definite.
        """
        variances, axes = torch.linalg.eigh(covariances.detach().cpu().double())
        self.log_weights.copy_(weights.cpu().double().log().log_softmax(0))
        self.means.copy_(means)
        self.variances.copy_(variances.clamp(min=0))  # rounding may leave −1e−17
        self.axes.copy_(axes)

    def posterior_mean(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        means, axes, variances = (b.to(x.dtype) for b in (self.means, self.axes, self.variances))
        along = torch.einsum("bkd,kde->bke", x[:, None] - means, axes)
        total = variances + sigma[:, None] ** 2
        score = self.log_weights.to(x.dtype) - (along**2 / total + total.log()).sum(-1) / 2
        if labels is not None:
            component = torch.arange(len(means), device=x.device)
            other = (labels[:, None] >= 0) & (labels[:, None] != component)
            score = score.masked_fill(other, -inf)
        share = score.softmax(dim=1)[..., None]
        shrunk = torch.einsum("bke,kde->bd", share * along * variances / total, axes)
        return (share * means).sum(1) + shrunk

    def flow_map(
        self, x: Tensor, start: float, end: float = 0.0, labels: Tensor | None = None
    ) -> Tensor:
        """Carry states (B, *shape) of noise level `start` to `end` along the exact flow.

        The flow of one Gaussian is linear in each of its axes,
        x_end = mean + V diag(sqrt((s + end²) / (s + start²))) Vᵀ (x_start − mean).

        Raises:
            KDMError: a state belongs to several components, whose flow has no closed form.
        """
        given = labels if labels is not None else x.new_full((len(x),), -1, dtype=torch.int64)
        if self.config.components == 1:
            given = torch.zeros_like(given)
        if bool((given < 0).any()):
            raise KDMError("the flow map of a mixture has no closed form: "
                           "give every state a label, or use one component")
        means, axes, variances = (b.to(x.dtype) for b in (self.means, self.axes, self.variances))
        # Along the axes of all components: a copy of V for each state would take B D² numbers.
        own = one_hot(given, len(means), len(x), x)[..., None]
        along = torch.einsum("bkd,kde->bke", x.flatten(1)[:, None] - means, axes)
        scaled = along * ((variances + end**2) / (variances + start**2)).sqrt()
        back = torch.einsum("bke,kde->bd", own * scaled, axes)
        return ((own * means).sum(1) + back).reshape(x.shape)


class FiniteData(ExactTeacher):
    """The optimal denoiser of finitely many samples y_i (EDM, eq. 57): their average, weighted by
    softmax(−‖x − y_i‖² / 2 sigma²).

    A label leaves the samples of its class, no label (−1 or None) leaves all of them. Fresh, all
    samples are 0 and of class 0.
    """

    config: FiniteDataConfig
    points: Tensor  # (n, D) float32
    classes: Tensor  # (n,) int64

    def __init__(self, config: FiniteDataConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        size = torch.Size(spec.sample_shape).numel()
        self.register_buffer("points", torch.zeros(config.count, size))
        self.register_buffer("classes", torch.zeros(config.count, dtype=torch.int64))

    def renumber(self, order: list[int], names: list[str]) -> None:
        super().renumber(order, names)
        # The sample's class is a value here, and no place.
        self.classes.copy_(torch.tensor(order).argsort().to(self.classes.device)[self.classes])

    def posterior_mean(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """A softmax that sees some rows at a time: what it has seen is kept with its maximum."""
        top = x.new_full((len(x), 1), torch.finfo(x.dtype).min)
        weight, mean = torch.zeros_like(top), torch.zeros_like(x)
        for first in range(0, len(self.points), ROWS):
            rows = self.points[first : first + ROWS].to(x.dtype)
            # Not by x·y, whose rounding is large against sigma² where sigma is small.
            distance = torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist")
            score = -((distance / sigma) ** 2) / 2
            if labels is not None:
                classes = self.classes[first : first + ROWS]
                other = (labels[:, None] >= 0) & (labels[:, None] != classes)
                score = score.masked_fill(other, -inf)
            higher = torch.maximum(top, score.amax(dim=1, keepdim=True))
            shares, fade = (score - higher).exp(), (top - higher).exp()
            weight = weight * fade + shares.sum(dim=1, keepdim=True)
            mean = mean * fade + shares @ rows
            top = higher
        return mean / weight


def fit_mixture(
    spec: SampleSpec, samples: Tensor, labels: Tensor, ridge: float = 1e-4
) -> GaussianMixture:
    """One Gaussian for each class, weighted by its frequency; one for all samples without classes.

    Args:
        spec: of the samples.
        samples: (n, *shape).
        labels: (n,) int64 classes, of no consequence where the spec has none.
        ridge: variance added in all directions, in squared units of the data, since fewer samples
            than dimensions leave directions without any.

    Raises:
        KDMError: a class has no samples.
    """
    k = max(spec.num_classes, 1)
    flat = samples.detach().cpu().double().flatten(1)
    classes = labels.cpu() if spec.num_classes else labels.cpu() * 0
    check_classes(classes, k)
    groups = [flat[classes == c] for c in range(k)]
    means = torch.stack([group.mean(0) for group in groups])
    floor = ridge * torch.eye(flat.shape[1], dtype=flat.dtype)
    covariances = [(group - mean).T @ (group - mean) / len(group) + floor
                   for group, mean in zip(groups, means, strict=True)]
    teacher = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=k), spec)
    teacher.describe(classes.bincount(minlength=k).double(), means, torch.stack(covariances))
    return teacher


def fit_data(spec: SampleSpec, samples: Tensor, labels: Tensor) -> FiniteData:
    """The optimal denoiser of these samples; arguments and errors as of `fit_mixture`."""
    check_classes(labels, spec.num_classes)
    teacher = FiniteData(FiniteDataConfig(kind="finite_data", count=len(samples)), spec)
    teacher.points.copy_(samples.flatten(1))
    teacher.classes.copy_(labels)
    return teacher


def check_classes(labels: Tensor, count: int) -> None:
    """Make sure that each class has samples.

    Raises:
        KDMError: one has none.
    """
    missing = set(range(count)) - set(labels.tolist())
    if missing:
        raise KDMError(f"teacher: class {min(missing)} has no training samples; an exact teacher "
                       "needs some of each: use more data or fewer classes")
