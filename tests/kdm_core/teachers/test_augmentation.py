"""Augmentation: each change is what it says, the labels tell it, and it does not leak."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.compute import seeded
from kdm_core.errors import KDMError
from kdm_core.networks import MLPConfig, NetworkConfig, SongUNetConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import DenoiserConfig, Teacher, build_teacher
from kdm_core.teachers.augmentation import (
    LABELS,
    PARAMETERS,
    SCALE,
    SQUEEZE,
    AugmentationConfig,
    augment,
    check_augmentation,
    draw,
    labels_of,
    transform,
)
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.config import TrainingConfig

FLIP_X, FLIP_Y, ZOOM, ANGLE, AXIS, STRENGTH, RIGHT, DOWN = range(PARAMETERS)
SPEC = SampleSpec(kind="image", shape=[3, 8, 8])
TOLD = SongUNetConfig(kind="song_unet", channels=16, multipliers=[1], embedding=1, blocks=1,
                      attention=[], dropout=0.0, augment_dim=LABELS)
EVERYTHING = AugmentationConfig(flip="augment", probability=1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(count, 3, height, width, generator=generator()) * 2 - 1


def smooth(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates of pixel centres from the middle, to the right and down, in pixels."""
    down, right = torch.meshgrid(torch.arange(height) - (height - 1) / 2,
                                 torch.arange(width) - (width - 1) / 2, indexing="ij")
    return right, down


def change(count: int = 4, **values: float) -> Tensor:
    """The same parameters for each image, zero where not given."""
    parameters = torch.zeros(count, PARAMETERS)
    for name, value in values.items():
        parameters[:, globals()[name.upper()]] = value
    return parameters


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


# Single changes


def test_no_change_is_the_identity_to_the_bit() -> None:
    assert torch.equal(transform(images(), change()), images())
    found, labels = augment(images(), AugmentationConfig(), generator())
    assert torch.equal(found, images())
    assert labels is None


@pytest.mark.parametrize(("parameter", "axis"), [("flip_x", -1), ("flip_y", -2)])
def test_flips_are_exact(parameter: str, axis: int) -> None:
    once = transform(images(), change(**{parameter: 1.0}))
    assert torch.equal(once, images().flip(axis))
    assert torch.equal(transform(once, change(**{parameter: 1.0})), images())


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_are_exact_and_counter_clockwise(quarters: int) -> None:
    turned = transform(images(), change(angle=quarters * math.pi / 2))
    assert_near(turned, images().rot90(quarters, (-2, -1)))


@given(right=st.integers(-20, 20), down=st.integers(-20, 20), width=st.sampled_from([8, 16]))
def test_whole_pixels_are_shifted_exactly_and_edges_reflected(
    right: int, down: int, width: int
) -> None:
    """A shift of one is an eighth of the size."""
    given = images(2, 8, width)
    found = transform(given, change(2, right=right * 8 / width, down=down))
    reflected = torch.cat([given, given.flip(-1)], dim=-1)
    reflected = torch.cat([reflected, reflected.flip(-2)], dim=-2)
    assert_near(found, reflected.roll((down, right), (-2, -1))[:, :, :8, :width])


@pytest.mark.parametrize("height,width", [(64, 64), (48, 96)])
def test_scale_is_about_the_middle(height: int, width: int) -> None:
    """A plane that rises with the coordinates rises more slowly when it is enlarged."""
    right, down = smooth(height, width)
    plane = torch.stack([right, down])[None]
    zoomed = transform(plane, change(1, zoom=2.0))
    torch.testing.assert_close(zoomed, plane / SCALE**2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("height,width", [(64, 64), (48, 96)])
@pytest.mark.parametrize("angle", [0.3, -2.0])
def test_rotation_keeps_lengths_on_any_aspect_ratio(height: int, width: int, angle: float) -> None:
    right, down = smooth(height, width)
    bump = torch.exp(-((right - 9) ** 2 + (down / 1.5) ** 2) / 20)[None, None]
    found = transform(bump, change(1, angle=angle))
    # Counter-clockwise, with down as the second coordinate.
    x = right * math.cos(angle) - down * math.sin(angle)
    y = right * math.sin(angle) + down * math.cos(angle)
    expected = torch.exp(-((x - 9) ** 2 + (y / 1.5) ** 2) / 20)[None, None]
    # Further out, reflections come in.
    inside = right**2 + down**2 < (height / 2) ** 2
    torch.testing.assert_close(found[..., inside], expected[..., inside], rtol=0, atol=0.03)


def test_anisotropy_stretches_one_axis_and_squeezes_the_other() -> None:
    right, down = smooth(64, 64)
    plane = torch.stack([right, down])[None]
    inner = (..., slice(16, 48), slice(16, 48))
    along = transform(plane, change(1, strength=1.0))
    factors = torch.tensor([1 / SQUEEZE, SQUEEZE])[None, :, None, None]
    torch.testing.assert_close(along[inner], (plane * factors)[inner], rtol=0, atol=1e-3)
    across = transform(plane, change(1, strength=1.0, axis=math.pi / 2))
    torch.testing.assert_close(across[inner], (plane / factors)[inner], rtol=0, atol=1e-3)


def test_changes_come_in_order() -> None:
    """Flipped first and shifted last, with the rotation between."""
    found = transform(images(), change(flip_x=1.0, angle=math.pi / 2, right=2.0))
    turned = transform(images().flip(-1).rot90(1, (-2, -1)), change(right=2.0))
    assert_near(found, turned)


# Draws and labels


def test_the_share_of_each_change_is_as_configured() -> None:
    config = AugmentationConfig(flip="augment", probability=0.3)
    changed = (draw(config, 40_000, generator()) != 0).float().mean(dim=0)
    expected = torch.tensor([0.5, 0.15, *[0.3] * 6])  # a flip that is drawn is half the time none
    torch.testing.assert_close(changed, expected, rtol=0, atol=0.01)


def test_parameters_are_distributed_as_in_table_6() -> None:
    drawn = draw(EVERYTHING, 40_000, generator())
    assert set(drawn[:, [FLIP_X, FLIP_Y]].unique().tolist()) == {0.0, 1.0}
    angles = drawn[:, [ANGLE, AXIS]]
    assert float(angles.abs().max()) <= math.pi
    torch.testing.assert_close(angles.std(dim=0), torch.full((2,), math.pi / math.sqrt(3)),
                               rtol=0.02, atol=0)
    normal = drawn[:, [ZOOM, STRENGTH, RIGHT, DOWN]]
    torch.testing.assert_close(normal.std(dim=0), torch.ones(4), rtol=0.02, atol=0)
    correlations = drawn.T.corrcoef() - torch.eye(PARAMETERS)
    assert float(correlations.abs().max()) < 0.03


def test_labels_are_zero_exactly_where_nothing_was_done() -> None:
    given = images(2000)
    found, labels = augment(given, AugmentationConfig(flip="augment", probability=0.1),
                            generator())
    assert labels is not None and labels.shape == (2000, LABELS)
    untold = (labels == 0).all(dim=1)
    untouched = (found == given).flatten(1).all(dim=1)
    assert torch.equal(untold, untouched)
    assert 0.1 < float(untold.float().mean()) < 0.5


def test_labels_say_what_was_done() -> None:
    parameters = change(1, flip_x=1.0, zoom=0.5, angle=1.0, axis=2.0, strength=0.7, right=-1.5,
                        down=0.25)
    expected = [1.0, 0.0, 0.5, math.cos(1) - 1, math.sin(1), 0.7 * math.cos(2), 0.7 * math.sin(2),
                -1.5, 0.25]
    torch.testing.assert_close(labels_of(parameters), torch.tensor([expected]))


def test_mirror_images_are_data_of_which_the_network_is_not_told() -> None:
    found, labels = augment(images(500), AugmentationConfig(flip="mirror"), generator())
    assert labels is None
    mirrored = (found == images(500).flip(-1)).flatten(1).all(dim=1)
    kept = (found == images(500)).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~kept)
    assert 0.4 < float(mirrored.float().mean()) < 0.6


def test_with_other_changes_mirroring_is_still_not_told() -> None:
    _, labels = augment(images(500), AugmentationConfig(flip="mirror", probability=0.5),
                        generator())
    assert labels is not None
    assert not labels[:, FLIP_X].any()
    assert labels[:, FLIP_Y].any()


def test_the_generator_decides_everything() -> None:
    first, first_labels = augment(images(), EVERYTHING, generator(1))
    torch.manual_seed(99)
    again, again_labels = augment(images(), EVERYTHING, generator(1))
    other, _ = augment(images(), EVERYTHING, generator(2))
    assert first_labels is not None and again_labels is not None
    assert torch.equal(first, again) and torch.equal(first_labels, again_labels)
    assert not torch.equal(first, other)


@given(seed=st.integers(0, 1000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_values_stay_in_range(seed: int, height: int, width: int) -> None:
    found, _ = augment(images(4, height, width), EVERYTHING, generator(seed))
    assert found.shape == (4, 3, height, width)
    assert float(found.abs().max()) <= 1 + 1e-5


# Who can be trained with it


def test_a_network_that_cannot_be_told_is_refused() -> None:
    mlp = MLPConfig(kind="mlp")
    check_augmentation(AugmentationConfig(flip="mirror"), SPEC, mlp)
    narrow = TOLD.model_copy(update={"augment_dim": 3})
    for network in (mlp, narrow, TOLD.model_copy(update={"augment_dim": 0})):
        for config in (AugmentationConfig(flip="augment"), AugmentationConfig(probability=0.1)):
            with pytest.raises(KDMError, match=r"network\.augment_dim: 9"):
                check_augmentation(config, SPEC, network)
    check_augmentation(EVERYTHING, SPEC, TOLD)


def test_points_are_refused() -> None:
    with pytest.raises(KDMError, match="^augmentation: is for images"):
        check_augmentation(AugmentationConfig(flip="mirror"),
                           SampleSpec(kind="points", shape=[2]), MLPConfig(kind="mlp"))


# Training

PATTERN = torch.tensor([[1.0, 1, 1, -1], [-1, 1, -1, -1], [-1, -1, 1, -1], [1, 1, -1, -1]])[None]


def trained(network: NetworkConfig, config: AugmentationConfig) -> Teacher:
    """A teacher of one image, trained with augmentation."""
    spec = SampleSpec(kind="image", shape=[1, 4, 4], sigma_data=1.0)
    with seeded(0):
        teacher = build_teacher(DenoiserConfig(kind="denoiser", network=network, p_mean=0.0), spec)
    training = TrainingConfig(steps=300, batch=32, lr=1e-2, schedule="cosine", warmup=10, ema=0.95,
                              precision="fp32")
    task = TeacherTask(teacher, training, PATTERN.repeat(32, 1, 1, 1),
                       torch.zeros(32, dtype=torch.int64), 0, augmentation=config)
    for step in range(training.steps):
        task.step(step)
    shadow: Teacher = task.ema.shadow
    return shadow


def orientations(teacher: Teacher) -> tuple[int, int]:
    """How many of 100 samples are the pattern, and how many its mirror image, which is 1.6 away."""
    noise = torch.randn(100, 1, 4, 4, generator=generator(3))
    found = teacher.sample(noise, None, FixedSolver(kind="heun", steps=8), "fp32").state

    def count(pattern: Tensor) -> int:
        return int((((found - pattern) ** 2).mean(dim=(1, 2, 3)).sqrt() < 0.5).sum())

    return count(PATTERN), count(PATTERN.flip(-1))


def test_what_the_network_is_told_of_does_not_leak() -> None:
    """Half its images were flipped; it makes the other half's, unless told of a flip."""
    teacher = trained(TOLD, AugmentationConfig(flip="augment", probability=0.05))
    kept, mirrored = orientations(teacher)
    assert kept >= 90
    assert mirrored == 0
    told = change(1, flip_x=1.0)
    teacher.network.register_forward_pre_hook(
        lambda network, inputs: (*inputs, labels_of(told.expand(len(inputs[0]), -1))))
    kept, mirrored = orientations(teacher)
    assert mirrored >= 90
    assert kept == 0


def test_mirroring_the_data_gives_both_orientations() -> None:
    mlp = MLPConfig(kind="mlp", width=64, blocks=2)
    kept, mirrored = orientations(trained(mlp, AugmentationConfig(flip="mirror")))
    assert kept >= 25
    assert mirrored >= 25


def test_the_network_is_told_only_while_it_is_trained() -> None:
    """The teacher that comes out is the one that went in, but for its weights."""
    spec = SampleSpec(kind="image", shape=[1, 4, 4])
    teacher = build_teacher(DenoiserConfig(kind="denoiser", network=TOLD), spec)
    training = TrainingConfig(steps=2, batch=4, precision="fp32")
    task = TeacherTask(teacher, training, PATTERN.repeat(8, 1, 1, 1),
                       torch.zeros(8, dtype=torch.int64), 0, augmentation=EVERYTHING)
    seen = []
    teacher.network.map_augment.register_forward_hook(lambda *call: seen.append(call[1][0]))
    task.step(0)
    assert len(seen) == 1 and seen[0].shape == (4, LABELS)
    teacher.denoise(torch.zeros(2, 1, 4, 4), torch.tensor(1.0), None)
    assert len(seen) == 1
