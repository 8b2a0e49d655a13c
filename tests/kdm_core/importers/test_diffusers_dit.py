"""DiT pipelines against diffusers' own, which wrote them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdm_core.errors import Adapted, DataError, KDMError, MismatchError
from kdm_core.importers import import_teacher
from kdm_core.importers.diffusers import import_diffusers
from kdm_core.networks.diffusers_dit import DiffusersDiT
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers import Denoiser, Teacher, load_teacher, save_teacher
from kdm_core.teachers.guidance import guided
from tests.support.diffusers_writer import diffusers, dit, dit_pipeline, edit, source

NAMES = [f"animal {number}" for number in range(10)]
LATENTS = SampleSpec(kind="latent", shape=[4, 16, 16], sigma_data=0.9, label_names=NAMES,
                     decoder="ab" * 32, picture=[3, 16, 16])
EULER = FixedSolver(kind="euler", steps=10)


def scheduler(**options: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, **options)


def write(folder: Path, model: Any = None, schedule: Any = None) -> Path:
    dit_pipeline(schedule or scheduler(), model).save_pretrained(folder)
    return folder


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def at(teacher: Teacher, scale: float) -> Teacher:
    config = GuidanceConfig(kind="classifier_free", scale=scale)
    return guided(teacher, None, config if scale > 1 else None)


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipeline(tmp_path: Path, scale: float) -> None:
    """And its images. It takes its "no label" to be number 1000, so classes are as many here."""
    pipeline = dit_pipeline(scheduler(), dit(classes=1000))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    data = LATENTS.model_copy(update={"label_names": [str(n) for n in range(1000)]})
    teacher = import_teacher(source(tmp_path), data)
    assert teacher.spec == data and not teacher.training

    labels, seen, decode = [7, 999, 0], list[Tensor](), pipeline.vae.decode

    def decoded(latents: Tensor, *more: Any) -> Any:
        seen.append(latents)
        return decode(latents, *more)

    pipeline.vae.decode = decoded
    images = pipeline(labels, scale, torch.Generator().manual_seed(5), 10, "pt").images
    factor = pipeline.vae.config.scaling_factor
    found = at(teacher, scale).sample(noise(), torch.tensor(labels), EULER, "fp32")
    assert found.nfe == 10 * (2 if scale > 1 else 1)
    assert deviation(found.state, seen[0] * factor) < 1e-5
    own = (decode(found.state / factor).sample / 2 + 0.5).clamp(0, 1)
    assert images.std() > 0.05
    assert float((own - images).abs().max()) < 1e-5


@pytest.mark.parametrize("channels", [4, 8])
def test_no_label_is_the_row_behind_the_classes(tmp_path: Path, channels: int) -> None:
    """The pipeline's loop, but for its number 1000; with a learned variance and without."""
    model, schedule = dit(out_channels=channels), scheduler()
    teacher = import_teacher(source(write(tmp_path, model)), LATENTS)
    labels = torch.tensor([1, 7, 9])
    found = at(teacher, 4.0).sample(noise(), labels, EULER, "fp32").state
    schedule.set_timesteps(10)
    x = noise()
    for t in schedule.timesteps:
        told, none = (model(x, t.expand(3), classes).sample[:, :4]
                      for classes in (labels, torch.full((3,), 10)))
        x = schedule.step(none + 4 * (told - none), t, x).prev_sample
    assert deviation(found, x) < 1e-5
    unlabelled = teacher.sample(noise(), None, EULER, "fp32").state
    nobody = teacher.sample(noise(), torch.full((3,), -1), EULER, "fp32").state
    assert torch.equal(unlabelled, nobody)
    assert deviation(unlabelled, teacher.sample(noise(), labels, EULER, "fp32").state) > 1e-3


@pytest.mark.parametrize(("schedule", "kind"), [
    (diffusers.EulerDiscreteScheduler(), "euler"),
    (diffusers.DPMSolverMultistepScheduler(), "dpmpp_2m")])
def test_pipelines_of_other_schedulers(tmp_path: Path, schedule: Any, kind: Any) -> None:
    model = dit()
    teacher = import_teacher(source(write(tmp_path, model, schedule)), LATENTS)
    labels = torch.tensor([1, 7, 9])
    found = teacher.sample(noise(), labels, FixedSolver(kind=kind, steps=10), "fp32").state
    schedule.set_timesteps(10)
    x = noise() * schedule.init_noise_sigma
    for t in schedule.timesteps:
        told = model(schedule.scale_model_input(x, t), t.expand(3), labels).sample[:, :4]
        x = schedule.step(told, t, x).prev_sample
    assert deviation(found, x) < 1e-5


def network_of(teacher: Teacher) -> DiffusersDiT:
    assert isinstance(teacher, Denoiser) and isinstance(teacher.network, DiffusersDiT)
    return teacher.network


def test_the_network_is_the_same_to_the_bit_also_when_saved(tmp_path: Path) -> None:
    model = dit()
    teacher = import_diffusers(source(write(tmp_path / "a", model)), LATENTS)
    save_teacher(tmp_path / "b", teacher)
    time, labels = torch.tensor([3, 400, 999]), torch.tensor([0, -1, 9])
    expected = model(noise(), time, labels.where(labels >= 0, 10)).sample[:, :4]
    for found in (teacher, load_teacher(tmp_path / "b")[0]):
        assert torch.equal(network_of(found)(noise(), time.float(), labels), expected)
        assert found.label_dropout == 0.1 and found.spec == LATENTS


def test_in_training_no_label_is_dropped_but_by_whoever_trains(tmp_path: Path) -> None:
    network = network_of(import_diffusers(source(write(tmp_path)), LATENTS)).train()
    time, labels = torch.full((200,), 500.0), torch.zeros(200, dtype=torch.int64)
    out = network(noise(1).expand(200, -1, -1, -1), time, labels)
    assert torch.equal(out, out[:1].expand_as(out))


def test_autocast_half_precision_and_layers(tmp_path: Path) -> None:
    folder = write(tmp_path, dit().half())
    teacher = import_diffusers(source(folder), LATENTS)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    network, time = network_of(teacher), torch.tensor([3.0, 400.0, 999.0])
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(noise(), time, None)
    exact = network(noise(), time, None)
    assert 0 < deviation(rough, exact) < 0.05
    layers = teacher.activations(noise(), torch.tensor(1.0), None)
    assert [layer.shape for layer in layers] == [(3, 16, 8, 8)] * 2


# What it makes


def test_what_it_makes_is_as_the_data_say(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for data in (LATENTS, LATENTS.model_copy(update={"decoder": None, "picture": None})):
        assert import_teacher(source(folder), data).spec == data
    # Without latents it is known that it makes some, and not of which autoencoder.
    images = SampleSpec(kind="image", shape=[3, 128, 128], label_names=NAMES)
    spec = import_diffusers(source(folder), images).spec
    assert (spec.kind, spec.shape, spec.decoder) == ("latent", [4, 16, 16], None)
    with pytest.raises(MismatchError, match=r"makes latents of shape \[4, 16, 16\].*holds images: "
                                            "have them made latents"):
        import_teacher(source(folder), images)
    with pytest.raises(MismatchError, match=r"shape \[4, 16, 16\], the data set holds latent of "
                                            r"shape \[4, 8, 8\]"):
        import_teacher(source(folder), LATENTS.model_copy(update={"shape": [4, 8, 8]}))
    with pytest.raises(MismatchError, match="takes 10 labels, the data set gives 0"):
        import_teacher(source(folder), LATENTS.model_copy(update={"label_names": []}))


def test_another_autoencoder_than_that_of_the_data_is_refused(tmp_path: Path) -> None:
    from kdm_core.importers import FolderSource

    save_teacher(tmp_path / "b", import_diffusers(source(write(tmp_path / "a")), LATENTS))
    saved = FolderSource(source="folder", folder=str(tmp_path / "b"))
    assert import_teacher(saved, LATENTS).spec == LATENTS
    with pytest.raises(MismatchError, match="autoencoder abababababab, .* those of cdcdcdcdcdcd"):
        import_teacher(saved, LATENTS.model_copy(update={"decoder": "cd" * 32}))


def test_a_dit_without_an_autoencoder_makes_what_the_data_are(tmp_path: Path) -> None:
    dit(in_channels=3, out_channels=3).save_pretrained(tmp_path)
    scheduler().save_pretrained(tmp_path)
    pixels = SampleSpec(kind="image", shape=[3, 16, 16], label_names=NAMES)
    assert import_teacher(source(tmp_path), pixels).spec == pixels
    latents = LATENTS.model_copy(update={"shape": [3, 16, 16]})
    assert import_teacher(source(tmp_path), latents).spec == latents


# Classes


def table(names: list[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def test_classes_are_matched_by_any_of_their_names(tmp_path: Path) -> None:
    model = dit()
    folder = write(tmp_path, model)
    edit(folder / "model_index.json", id2label=table(
        [f"beast {9 - n}, animal {9 - n}, Animalia" for n in range(10)]))
    with pytest.warns(Adapted, match="matched by name"):
        teacher = import_teacher(source(folder), LATENTS)
    assert teacher.spec.label_names == NAMES
    time, labels = torch.tensor([3.0, 400.0, 999.0]), torch.tensor([0, -1, 7])
    theirs = torch.tensor([9, 10, 2])
    assert torch.equal(network_of(teacher)(noise(), time, labels),
                       model(noise(), time.long(), theirs).sample[:, :4])


@pytest.mark.parametrize(("names", "called"), [
    (["crane", "maillot, bathing suit", "maillot, tank suit", "cock, rooster", *NAMES[4:8], "crane",
      NAMES[9]],
     ["crane (0)", "maillot, bathing suit", "maillot, tank suit", "cock", *NAMES[4:8], "crane (8)",
      NAMES[9]])])
def test_classes_have_their_shortest_names_where_the_data_have_none(
    tmp_path: Path, names: list[str], called: list[str]
) -> None:
    folder = write(tmp_path)
    edit(folder / "model_index.json", id2label=table(names))
    unlabelled = LATENTS.model_copy(update={"label_names": []})
    assert import_diffusers(source(folder), unlabelled).spec.label_names == called


def test_classes_that_the_data_call_otherwise(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.warns(Adapted, match=r"does not say .* in the order of the data set's \[animal 0"):
        assert import_teacher(source(folder), LATENTS).spec.label_names == NAMES
    edit(folder / "model_index.json", id2label=table([f"beast {n}" for n in range(10)]))
    with pytest.warns(Adapted, match=r"or in other words; .* order of the data set's \[animal 0"):
        assert import_teacher(source(folder), LATENTS).spec.label_names == NAMES
    edit(folder / "model_index.json", id2label=table([*NAMES[1:5], *["x"] * 6]))
    with pytest.raises(MismatchError, match="are not the same"):
        import_teacher(source(folder), LATENTS)


# What is refused


@pytest.mark.parametrize(("file", "values", "saying"), [
    ("model_index.json", {"text_encoder": ["transformers", "T5"]}, "has a text_encoder: text"),
    ("model_index.json", {"id2label": ["a", "b"]}, "id2label does not name the network's 10"),
    ("model_index.json", {"id2label": table(NAMES[1:])}, "id2label does not name"),
    ("model_index.json", {"id2label": table(NAMES) | {"3": None}}, "id2label does not name"),
    ("transformer/config.json", {"_class_name": "PixArtTransformer2DModel"},
     "describes PixArtTransformer2DModel; supported: UNet2DModel, DiTTransformer2DModel"),
    ("transformer/config.json", {"invented": 3}, "knows no invented"),
    ("transformer/config.json", {"caption_channels": 8}, "knows no caption_channels"),
    ("transformer/config.json", {"norm_type": "ada_norm_single"}, "ada_norm_single is no DiT"),
    ("transformer/config.json", {"num_layers": 3}, "does not fit .* tensors are missing"),
    ("transformer/config.json", {"num_layers": 10**12}, "num_layers is 1000000000000, and there"),
    ("transformer/config.json", {"num_layers": 0}, "num_layers is 0"),
    ("transformer/config.json", {"num_layers": "two"}, "num_layers is two"),
    ("transformer/config.json", {"sample_size": 10**9}, "sizes make no sense .sample_size 10+"),
    ("transformer/config.json", {"sample_size": None}, "sizes make no sense"),
    ("transformer/config.json", {"sample_size": 15}, "layers of patches of 2, .* for a side of 15"),
    ("transformer/config.json", {"num_attention_heads": 10**7}, "does not fit .*another shape"),
    ("transformer/config.json", {"attention_head_dim": 10**40}, "does not fit .*builds no"),
    ("transformer/config.json", {"num_embeds_ada_norm": 1000}, "does not fit .*another shape"),
    ("transformer/config.json", {"num_embeds_ada_norm": None}, "does not fit .*builds no"),
    ("transformer/config.json", {"patch_size": 0}, "does not fit .*builds no"),
    ("transformer/config.json", {"activation_fn": "magic"}, "does not fit .*builds no"),
    ("transformer/config.json", {"out_channels": 4}, "does not fit .*another shape"),
])
def test_configurations_that_are_refused(
    tmp_path: Path, file: str, values: dict[str, Any], saying: str
) -> None:
    edit(write(tmp_path) / file, **values)
    with pytest.raises(KDMError, match=saying) as refused:
        import_teacher(source(tmp_path), LATENTS)
    assert isinstance(refused.value, DataError)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, dit(out_channels=12))
    with pytest.raises(DataError, match=r"maps \(4, 16, 16\) and a time to 12 channels"):
        import_teacher(source(folder), LATENTS)
    write(tmp_path)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    broken = dit()
    broken.proj_out_2.bias[0] = torch.nan
    broken.save_pretrained(folder / "transformer")
    with pytest.raises(DataError, match="proj_out_2.bias has values that are not finite"):
        import_teacher(source(folder), LATENTS)
    weights.write_bytes(whole[:500])
    with pytest.raises(DataError, match="is damaged"):
        import_teacher(source(folder), LATENTS)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"\.bin is a pickle"):
        import_teacher(source(folder), LATENTS)
    (folder / "model_index.json").write_text("[1]")
    with pytest.raises(DataError, match="holds no JSON object"):
        import_teacher(source(folder), LATENTS)


OLDER: dict[str, Any] = {
    "_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None,
    "use_linear_projection": False, "only_cross_attention": False, "double_self_attention": False,
    "attention_type": "default"}


def test_configurations_from_before_dit_had_a_class(tmp_path: Path) -> None:
    """As that of facebook/DiT-XL-2-256 is."""
    model = dit()
    config = write(tmp_path, model) / "transformer" / "config.json"
    edit(config, **OLDER)
    teacher = import_teacher(source(tmp_path), LATENTS)
    time, labels = torch.tensor([3, 400, 999]), torch.tensor([0, 4, 9])
    assert torch.equal(network_of(teacher)(noise(), time, labels),
                       model(noise(), time, labels).sample[:, :4])
    edit(config, caption_channels=8)
    with pytest.raises(DataError, match="caption_channels: 8 is not supported"):
        import_teacher(source(tmp_path), LATENTS)
    written = json.loads(config.read_text())
    del written["norm_type"]
    config.write_text(json.dumps(written))
    with pytest.raises(DataError, match="norm_type None is no DiT"):
        import_teacher(source(tmp_path), LATENTS)
