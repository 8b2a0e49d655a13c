"""Golden numbers of what samples pairs: an edit that changes them makes other pairs.

Then raise `MAKER` in kdm_core/pairs/spec.py, and renew the numbers:
`python -m tests.kdm_core.pairs.test_maker`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from kdm_core.compute import seeded
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_batch
from kdm_core.pairs.spec import MAKER
from kdm_core.samples import SampleSpec
from kdm_core.solvers import SolverConfig
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers import Teacher, TeacherConfig, build_teacher
from kdm_core.teachers.guidance import guided

FILE = Path(__file__).parent / "golden/maker.json"
CPU = torch.device("cpu")
SPEC = SampleSpec(kind="image", shape=[3, 8, 8], label_names=["a", "b"])
HEUN: dict[str, Any] = {"kind": "heun", "steps": 4}
MLP: dict[str, Any] = {"kind": "mlp", "width": 16, "blocks": 1}
UNET: dict[str, Any] = {"channels": 16, "multipliers": [1, 1], "blocks": 1, "attention": [4]}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    **{kind: {"kind": kind, **UNET} for kind in ("unet", "song_unet", "dhariwal_unet")},
    "edm2_unet": {"kind": "edm2_unet", "channels_per_head": 8, **UNET},
    "transformer": {"kind": "transformer", "width": 32, "blocks": 1, "heads": 2},
}
SOLVERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "steps": 4}
       for kind in ("euler", "heun", "midpoint", "rk4", "dpmpp_2m")},
    "dopri5": {"kind": "dopri5", "tolerance": 1e-3}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    **{f"denoiser, {name}": ({"kind": "denoiser", "network": network}, HEUN, None)
       for name, network in NETWORKS.items() if name != "mlp"},
    **{f"denoiser, {name}": ({"kind": "denoiser", "network": MLP}, solver, None)
       for name, solver in SOLVERS.items()},
    **{f"flow, {name}": ({"kind": "flow_matching", "network": MLP}, solver, None)
       for name, solver in SOLVERS.items()},
    "guided": ({"kind": "denoiser", "network": NETWORKS["song_unet"]}, HEUN,
               {"kind": "classifier_free", "scale": 3.0}),
}


def filled(teacher: Teacher) -> Teacher:
    """The teacher with weights that torch's generators do not decide."""
    for place, (_, weight) in enumerate(sorted(teacher.named_parameters())):
        inputs = weight[0].numel() if weight.ndim else 1
        values = np.random.default_rng(place).normal(size=weight.shape) / max(inputs, 4) ** 0.5
        weight.data.copy_(torch.from_numpy(np.asarray(values)))
    teacher.label_dropout = 0.1
    return teacher.eval()


def numbers(name: str) -> list[float]:
    """Statistics of four samples, and a few of their values."""
    model, solver, guidance = CASES[name]
    with seeded(0):  # EDM2's frequencies are drawn, and no parameters
        plain = filled(build_teacher(TypeAdapter(TeacherConfig).validate_python(model), SPEC))
    asked = None if guidance is None else GuidanceConfig.model_validate(guidance)
    teacher = guided(plain, None, asked)
    config = PairsConfig(
        solver=TypeAdapter(SolverConfig).validate_python(solver), guidance=asked, train=1,
        validation=2, test=2, batch=4, shard=4, chunk=4, precision="fp32", noise_dtype="float32",
        sample_dtype="float32")
    block, nfe = sample_batch(plan_store(config, teacher, "0" * 64, None, 7, CPU), teacher, 0, CPU)
    values = block.sample.astype(np.float64)
    # An adaptive solver may take one step more on another processor.
    return [0 if solver["kind"] == "dopri5" else nfe, float(values.mean()), float(values.std()),
            *values.reshape(-1)[::150].tolist()]


@pytest.mark.parametrize("name", CASES)
def test_pairs_are_those_of_this_version(name: str) -> None:
    golden = json.loads(FILE.read_text())
    assert golden["maker"] == MAKER, "renew the numbers: python -m tests.kdm_core.pairs.test_maker"
    found = numbers(name)
    np.testing.assert_allclose(found, golden["numbers"][name], rtol=2e-3, atol=2e-3, err_msg=(
        "the same specification gives other pairs: raise MAKER in kdm_core/pairs/spec.py, then "
        "python -m tests.kdm_core.pairs.test_maker"))
    assert np.std(found[3:]) > 0.05  # no case is trivial


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"maker": MAKER, "numbers": {
        name: [round(value, 5) for value in numbers(name)] for name in CASES}}, indent=1) + "\n")
