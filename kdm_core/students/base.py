"""What all students share: the interface that trainer, evaluation, exports and reports know.

A kind of student is a file of this package: a configuration with `kind`, and the module that it
builds. `kdm_core.students` lists them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from kdm_core.classes import shown
from kdm_core.compute import Precision, autocast
from kdm_core.config import Config
from kdm_core.errors import KDMError, MismatchError, printable
from kdm_core.labels import Labels, as_labels
from kdm_core.losses.distances import Distance
from kdm_core.networks import AnyNetworkConfig, IdentityConfig, Network
from kdm_core.noise import draw
from kdm_core.samples import SampleSpec

if TYPE_CHECKING:
    from kdm_core.decoders.base import Autoencoder
    from kdm_core.pairs.reading.whole import Pairs
    from kdm_core.students.hierarchical import Band
    from kdm_core.students.objective import Batch, LossConfig


class StudentKind(Config):
    """Configuration of a student of one kind.

    Attributes:
        unused: names of losses for which the kind has no use.
    """

    unused: ClassVar[tuple[str, ...]] = ()

    def build(self, spec: SampleSpec) -> "Student":
        """The student, with fresh weights.

        Raises:
            KDMError, ValueError: there is none for such samples; the message starts with a field.
        """
        raise NotImplementedError

    def completed(self, teacher: Mapping[str, Any] | None) -> Self:
        """The same, with what it leaves to the teacher.

        Args:
            teacher: its configuration as its folder has it; None if it is unknown.

        Raises:
            MismatchError: there is no such teacher.
        """
        return self

    def describe(self) -> str:
        """What it is, in a few words: "dense Koopman operator on 128 dimensions"."""
        raise NotImplementedError

    def networks(self) -> dict[str, AnyNetworkConfig | IdentityConfig]:
        """The configurations of its networks, by the fields that have them."""
        raise NotImplementedError

    def check(self, losses: "LossConfig") -> None:
        """Make sure that it has what losses need.

        Raises:
            ValueError: it has not; the message starts with the parameter's name.
        """
        for name in self.unused:
            if getattr(losses, name):
                raise ValueError(f"losses.{name}: a student of this kind has no use for it; set it "
                                 "to 0")


class Student(nn.Module):
    """A generator that makes a sample of a noise in one evaluation: `student(noise, labels)`.

        student = KDM.load("a/students/folder")
        images = student.sample(64, seed=0)

    `labels` are what `kdm_core.labels` takes: a name or an integer for all of a batch, or one for
    each of its samples. A class-conditional student needs them wherever it is given noise, states
    or latents; `sample`, which draws the noise, draws those as well if they are not given. All
    raise a KDMError for what are no labels of the student's.

    Attributes:
        has_latents: whether its samples are made of latents between which it can go: `between`.
        has_states: whether its latents evolve in parts, each of which it can decode: `states`.
        has_modes: whether its latents have modes that can be exchanged: `edit`.
        latent: numbers a pair that its objective takes of standard normal noise.
        provenance: of one that was trained or loaded: what it was distilled from.
        verdict: what an evaluation came to (`kdm_core.metrics.verdict.Verdict`), if that is known.
        autoencoder: whose decoder makes pictures of a student's latents, if it is at hand: a
            network beside it, none of its own.
    """

    has_latents = False
    has_states = False
    has_modes = False
    latent = 0

    def __init__(self, config: StudentKind, spec: SampleSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.provenance: dict[str, Any] = {}
        self.verdict: Mapping[str, Any] | None = None
        # As an attribute it would be one of its modules, with weights in its own file.
        self._beside: dict[str, Autoencoder] = {}

    @property
    def autoencoder(self) -> "Autoencoder | None":
        return self._beside.get("autoencoder")

    def attach(self, autoencoder: "Autoencoder | None") -> None:
        """Have an autoencoder beside it, or none."""
        self._beside = {} if autoencoder is None else {"autoencoder": autoencoder}

    # What a kind says

    def forward(self, noise: Tensor, labels: Labels | None = None) -> Tensor:
        """Samples (B, *shape) from unit-variance noise (B, *shape)."""
        raise NotImplementedError

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What it minimises on a batch of pairs.

        Returns:
            The terms that have a weight, unweighted, and the predicted samples (B, *shape).
        """
        raise NotImplementedError

    def prepare(self, validation: "Pairs") -> None:
        """Look at held-out pairs before it is trained; what it keeps of them is a buffer."""

    def freeze_unused(self, losses: "LossConfig") -> None:
        """Freeze the weights that no term with a weight reaches."""

    def networks(self) -> list[Network]:
        """Its networks, whose weights may start at a teacher's."""
        raise NotImplementedError

    def check_teacher(self, teacher: Mapping[str, Any]) -> None:
        """Make sure that the weights of a teacher's network mean here what they mean there.

        Args:
            teacher: its configuration as its folder has it.

        Raises:
            MismatchError: they do not.
        """

    def tell_times(self, times: list[float]) -> None:
        """Take over what a teacher's network is told where samples and where noise are."""

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """Samples (B, *shape) in several steps from noise to sample, an evaluation each.

        Raises:
            KDMError: it has learned nothing of the states between.
        """
        self.check_steps(steps)
        raise NotImplementedError

    def check_steps(self, steps: int) -> None:
        """Make sure that it can sample in so many steps.

        Raises:
            KDMError: it cannot.
        """
        raise NotImplementedError

    def eigenvalues(self) -> Tensor | None:
        """The spectrum of its operator, (d,) complex, on the CPU; None for a kind without one."""
        return None

    def between(
        self, start: Tensor, end: Tensor, weights: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Samples of the latents (1 − w) E(start) + w E(end), for kinds that have latents.

        Args:
            start, end: noises (B, *shape).
            weights: w (B,).
        """
        raise NotImplementedError

    def states(
        self, noise: Tensor, positions: list[float], labels: Labels | None = None
    ) -> Tensor:
        """The path of a noise's latents, evolved in closed form from one encoding, each decoded.

        That is the teacher's path as far as a loss (`trajectory`) has trained it.

        Args:
            noise: (B, *shape).
            positions: from noise (1) to samples (0), as `kdm_core.pairs.spec.KeptState` says.

        Returns:
            (B, len(positions), *shape), float32, of unit variance.

        Raises:
            KDMError: the kind has no operator for parts of the way.
        """
        raise KDMError(f"this student ({self.config.describe()}) has no modes that evolve; use a "
                       "hierarchical one, or the paper's with shared encoders and a continuous "
                       "operator", field="kind")

    def edit(
        self, noise: Tensor, band: "Band", labels: Labels | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """Samples (B, *shape) of noise (B, *shape) whose modes in a band are another noise's, for
        kinds that have modes.

        Args:
            band: which modes.
            other: the noise (B, *shape) whose modes take their place; None drops them.

        Raises:
            KDMError: the kind has no modes, or there is no such band.
        """
        raise KDMError(f"this student ({self.config.describe()}) has no modes to edit; use a "
                       "hierarchical one", field="kind")

    def invert(
        self, samples: Tensor, labels: Labels | None = None, steps: int = 18,
        precision: Precision = "auto",
    ) -> Tensor:
        """The noises (B, *shape) from which samples (B, *shape) come, for kinds whose samples are
        those of an ODE.

        Args:
            steps: of Heun's method.

        Raises:
            KDMError: the kind has no inverse, or these are no labels of this student's.
        """
        raise KDMError(f"this student ({self.config.describe()}) has no way back from samples to "
                       "noise; use a rectified_flow", field="kind")

    def class_weights(self) -> list[tuple[Tensor, int]]:
        """As of `kdm_core.networks.base.Network`: those of all its networks."""
        return [weight for network in self.networks() for weight in network.class_weights()]

    # What all do alike

    def save(self, folder: str | Path) -> str:
        """Write it for others, with a card, as `kdm_core.save_pretrained` does.

        Returns:
            The fingerprint.

        Raises:
            DataError: it cannot be written.
        """
        from kdm_core.sharing.hub import save_pretrained

        return save_pretrained(self, folder)

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Self:
        """One of this class, as `kdm_core.from_pretrained` gives it; `Student.load` takes any.

        Raises:
            MismatchError: it is of another kind, or its weights do not fit its configuration.
            DataError, KDMError: as of `from_pretrained`.
        """
        from kdm_core.sharing.hub import from_pretrained

        found = from_pretrained(source, revision)
        if not isinstance(found, cls):
            raise MismatchError(f"student: {source} is of another kind "
                                f"({found.config.describe()}): load it by Student.load")
        return found

    def describe(self) -> str:
        """What it is, in a few lines: kind, samples, classes, size, origin, verdict."""
        spec, spectrum = self.spec, self.eigenvalues()
        modes = "" if spectrum is None else (f", eigenvalues of modulus {spectrum.abs().min():.3f} "
                                             f"to {spectrum.abs().max():.3f}")
        more = ", or in more steps" if self.can_refine() else ""
        return printable("\n".join([
            f"{type(self).__name__}: {self.config.describe()}{modes}",
            f"makes {spec.kind} samples of shape {spec.sample_shape} in 1 evaluation{more}",
            *self._decoding(),
            (f"{spec.num_classes} classes: {shown(spec.label_names)}" if spec.num_classes
             else "no classes"),
            f"{sum(weight.numel() for weight in self.parameters()):,} parameters",
            origin(self.provenance), *verdict_lines(self.verdict)]))

    def _decoding(self) -> list[str]:
        if self.spec.kind != "latent":
            return []
        if self.autoencoder is None:
            return ["without the decoder that makes images of them"]
        size = sum(weight.numel() for weight in self.autoencoder.parameters())
        return [f"which its decoder of {size:,} parameters makes images of shape "
                f"{tuple(self.autoencoder.picture)}"]

    def can_refine(self) -> bool:
        """Whether it can sample in several steps."""
        try:
            self.check_steps(2)
        except KDMError:
            return False
        return True

    @property
    def label_weights(self) -> list[int] | None:
        """In which proportion labels are drawn where none are given: that of the pairs that the
        student was distilled from; None for uniformly."""
        return self.provenance.get("label_weights")

    def known(self, labels: Labels | None, like: Tensor) -> Tensor | None:
        """Labels (B,) int64 for a batch such as `like`, on its device; None without classes.

        Raises:
            KDMError: they are no labels of this student's.
        """
        found = as_labels(labels, self.spec.label_names, len(like), "student")
        return None if found is None else found.to(like.device)

    def heeded(self, labels: Labels | None, like: Tensor) -> Tensor | None:
        """As `known`, but for tensors in training and under a compiler, which are (B,) int64 of a
        store: a look at their values would make the device wait, or end the graph."""
        taken = isinstance(labels, Tensor) and (self.training or torch.compiler.is_compiling())
        if taken or (labels is None and not self.spec.num_classes):
            return cast(Tensor | None, labels)
        return self.known(labels, like)

    @torch.inference_mode()
    def generate(
        self,
        noise: Tensor,
        labels: Labels | None = None,
        precision: Precision = "auto",
        steps: int = 1,
    ) -> Tensor:
        """Samples (B, *shape), float32, from unit-variance noise (B, *shape).

        Args:
            labels: of a class-conditional student: a name or an integer for all samples, or one
                for each of them.
            precision: of matrix products.
            steps: 1, or more for a student that has learned of states between noise and sample.

        Raises:
            KDMError: this is no noise or these are no labels of this student's, or `steps` is not
                for it.
        """
        shape = tuple(self.spec.sample_shape)
        if not isinstance(noise, Tensor) or noise.shape != noise.shape[:1] + shape:
            found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise KDMError(f"noise: {found} was given; this student takes a tensor of the shape "
                           f"(B, {', '.join(map(str, shape))}), or draws the noise itself: sample")
        given = self.known(labels, noise)
        with autocast(precision, noise.device):
            if steps == 1:
                return self(noise, given).to(torch.float32)  # type: ignore[no-any-return]
            return self.refine(noise, given, steps).to(torch.float32)

    def sample(
        self,
        n: int,
        seed: int = 0,
        labels: Labels | None = None,
        precision: Precision = "auto",
        batch: int = 500,
        steps: int = 1,
        decode: bool = False,
    ) -> Tensor:
        """Samples (n, *shape) float32 on the student's device; images in about [-1, 1].

        Args:
            n: how many.
            seed: sample i is that of noise `kdm_core.noise.draw(seed, [i], …)`, whatever n and
                the batch are.
            labels: as of `generate`; None draws them, too, by `label_weights`.
            precision, steps: as of `generate`.
            batch: samples that are made together.
            decode: give the images of latents, (n, *picture) in [-1, 1].

        Raises:
            KDMError: n, the labels or the seed are not such, or nothing can decode.
        """
        if decode:
            self.require_autoencoder()
        return torch.cat([self.pictures(made) if decode else made for _, _, made in self.batches(
            n, seed, labels, precision, batch, steps)])

    def require_autoencoder(self) -> "Autoencoder":
        """The autoencoder of its latents.

        Raises:
            KDMError: its samples are no latents, or it came without one.
        """
        if self.spec.kind != "latent":
            raise KDMError(f"its samples are {self.spec.name} and no latents, leave it out",
                           field="decode")
        if self.autoencoder is None:
            raise KDMError("this student came without the autoencoder of its latents: sample it "
                           "without, and decode them yourself", field="decode")
        return self.autoencoder

    @torch.inference_mode()
    def pictures(self, samples: Tensor) -> Tensor:
        """Images (n, *picture) in [-1, 1] of latents (n, *shape), on their device; samples as they
        are where there is no decoder."""
        if self.autoencoder is None:
            return samples
        return self.autoencoder.to(samples.device).decode(samples)

    @property
    def shown(self) -> SampleSpec:
        """What `pictures` gives."""
        return self.spec if self.autoencoder is None else self.spec.as_picture

    def batches(
        self,
        n: int,
        seed: int = 0,
        labels: Labels | None = None,
        precision: Precision = "auto",
        batch: int = 500,
        steps: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """What `sample` makes, batch by batch: noise (B, *shape) float32, labels (B,) int64, None
        without classes, and samples (B, *shape). Arguments and errors as there."""
        if n < 1 or seed < 0:
            raise KDMError(f"n and seed: {n} samples of seed {seed} cannot be made; use n ≥ 1, "
                           "seed ≥ 0")
        chosen = None if labels is None else as_labels(labels, self.spec.label_names, n, "student")
        device = next(self.parameters()).device
        for start in range(0, n, batch):
            own = range(start, min(start + batch, n))
            drawn, classes = draw(seed, own, self.spec.sample_shape, "float32",
                                  self.spec.num_classes, self.label_weights)
            noise = torch.from_numpy(drawn).to(device)
            given = (self.spec.told(torch.from_numpy(classes)) if chosen is None
                     else chosen[own.start : own.stop])
            yield noise, given, self.generate(noise, given, precision, steps)


def origin(provenance: Mapping[str, Any]) -> str:
    """What a student was distilled from, by its own record."""
    if "pairs" not in provenance:
        return "nobody wrote down what it was distilled from"
    pairs, count, teacher = (provenance.get(key) for key in ("pairs", "pairs_read", "teacher"))
    read = f"{count:,} of " if isinstance(count, int) else ""
    return (f"distilled from {read}the pairs {str(pairs)[:12]} of "
            + (f"the teacher {str(teacher)[:12]}" if teacher else "an unknown teacher"))


def verdict_lines(verdict: Mapping[str, Any] | None) -> list[str]:
    """The word, and why; nothing where it is not known."""
    if verdict is None:
        return []
    return [f"verdict: {verdict['word']}", *(f"  {line}" for line in verdict["why"]),
            *(f"  could not be judged: {line}" for line in verdict["unknown"])]
