"""Two real processes train like one: weights, curves, errors, a killed process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdm_core.compute import dropout_seed
from kdm_core.errors import KDMError
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.training.distributed import (
    check_batch,
    distributed,
    is_loss,
    mean_over_processes,
    own_device,
    own_rows,
    own_seed,
    process_group,
    synchronised,
)
from kdm_core.training.loop import Record
from pipeline.params.execution import DaskSampling, TorchrunTraining
from tests.support.distributed_worker import IMAGES, PROCESSES, normalised, task_of, train
from tests.support.project import ROOT


def start(part: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a part of tests/support/distributed_worker.py in two processes."""
    command = [sys.executable, "-m", "tests.support.distributed_worker", part, str(folder)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that two processes have computed."""
    folder = tmp_path_factory.mktemp("two")
    done = start("compare", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compare done\n"
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_equal_runs(
    found: dict[str, Tensor], expected: dict[str, Tensor], curves: list[Record],
    expected_curves: list[Record],
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert [record["step"] for record in curves] == [r["step"] for r in expected_curves]
    for record, other in zip(curves, expected_curves, strict=True):
        names = [name for name in other if name not in TIMES]
        # Norms through an adversary's batch statistics multiply the rounding of kernels, which CPUs
        # choose by the size of a batch.
        for rel, own in ((1e-3, [name for name in names if name.endswith("norm")]),
                         (1e-5, [name for name in names if not name.endswith("norm")])):
            assert {name: record[name] for name in own} == pytest.approx(
                {name: other[name] for name in own}, rel=rel, abs=1e-5)


TIMES = {"waiting"}
"""Curves of what the machine does, not of what is computed."""


@pytest.mark.parametrize("name", [
    "points", "images", "penalised", "projected", "micro", "direct", "hierarchical",
    "rectified flow", "mean flow", "equilibrium"])
def test_two_processes_end_like_one(two: Path, tmp_path: Path, name: str) -> None:
    expected, curves = train(name, tmp_path)
    for rank in range(PROCESSES):
        found = load_file(two / f"{name}-{rank}.safetensors")
        assert_equal_runs(found, expected, json.loads((two / f"{name}-{rank}.json").read_text()),
                          curves)


def test_processes_have_equal_weights_to_the_bit(two: Path) -> None:
    for name in ("points", "images"):
        first, second = (load_file(two / f"{name}-{rank}.safetensors") for rank in range(2))
        for key, value in first.items():
            assert torch.equal(value, second[key]), key


def test_two_micro_batches_are_two_processes(two: Path, tmp_path: Path) -> None:
    expected, curves = train("micro", tmp_path)
    assert_equal_runs(load_file(two / "points-0.safetensors"), expected,
                      json.loads((two / "points-0.json").read_text()), curves)


def test_batch_statistics_are_global(two: Path) -> None:
    """Values, gradients and gradients of gradients are nn.BatchNorm2d's on the whole batch."""
    expected = normalised()
    for rank in range(PROCESSES):
        found = load_file(two / f"normalised-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_what_does_not_fit_is_one_message(two: Path) -> None:
    first, second = (json.loads((two / f"messages-{rank}.json").read_text()) for rank in range(2))
    assert first["batch"] == second["batch"]
    assert first["batch"].startswith("batch: 9 samples cannot be shared equally by 2")
    assert first["micro"].endswith("use 8 or 12")
    assert "do not all find the same checkpoint" in first["start"]
    assert "do not all find the same checkpoint" in second["start"]


def test_dropout_differs_between_processes(two: Path) -> None:
    first, second = (json.loads((two / f"messages-{rank}.json").read_text()) for rank in range(2))
    assert first["dropout"] == dropout_seed(0, 3) != second["dropout"]


def test_a_killed_process_and_an_error_of_one(two: Path, tmp_path: Path) -> None:
    """The run goes on to the same bits; another fails with one message of one process."""
    killed = start("killed", tmp_path)
    assert killed.returncode == 1
    assert killed.stderr == ("error: process 1 of 2 was ended by SIGKILL (out of memory?): run "
                             "again to go on from the last checkpoint\n")
    assert (tmp_path / "killed").exists()
    assert not list(tmp_path.glob("killed-?.safetensors"))
    failed = start("resumed", tmp_path)
    undisturbed = load_file(two / "points-0.safetensors")
    for rank in range(PROCESSES):
        for name, value in load_file(tmp_path / f"killed-{rank}.safetensors").items():
            assert torch.equal(value, undisturbed[name]), name
    assert failed.returncode == 1
    assert failed.stderr == "error: the disk of this machine is full\n"
    assert failed.stdout == ""


def test_one_process_is_as_without(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    rows = torch.arange(6)
    assert distributed(module) is module
    assert torch.equal(own_rows(rows), rows)
    assert mean_over_processes({"a": 2.0}) == {"a": 2.0}
    assert own_seed(5) == 5
    with process_group(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
    check_batch(8, 4)
    with pytest.raises(KDMError, match="16 or 24 or 32 processes × 1 .* use 480 or 576"):
        check_batch(512, 1, 16, 24, 32)
    check_batch(480, 1, 16, 24, 32)
    with pytest.raises(KDMError, match="1 processes × 4 micro-batches .* use 4 or 8"):
        check_batch(6, 4)


def test_synchronised_shares_weights_and_buffers_under_their_names() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2)))
    names = list(module.state_dict())
    parameters, buffers = list(module.parameters()), list(module.buffers())
    plain = nn.BatchNorm2d(2)
    swapped = synchronised(module)
    assert list(swapped.state_dict()) == names
    assert all(a is b for a, b in zip(swapped.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(swapped.buffers(), buffers, strict=True))
    images = torch.randn(4, 2, 3, 3)
    assert torch.equal(swapped[1](images), plain(images))
    assert torch.equal(swapped[1][0].running_var, plain.running_var)


@pytest.mark.parametrize("student", [
    {}, {"encoders": "shared", "projected_channels": 1, "latent": 8}, {"encoders": "noise"}],
    ids=["separate", "shared", "noise"])
@pytest.mark.parametrize("network", [
    {"kind": "mlp", "width": 16, "blocks": 1},
    {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    {"kind": "song_unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    {"kind": "dhariwal_unet", "channels": 32, "multipliers": [1, 2], "blocks": 1,
     "attention": [4]},
    {"kind": "edm2_unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4],
     "channels_per_head": 16},
    {"kind": "transformer", "width": 32, "blocks": 1, "heads": 2},
], ids=lambda network: network["kind"])
@pytest.mark.parametrize("losses", [{}, {"reconstruction": 0.0, "stop_gradient": True}],
                         ids=["all", "latent"])
def test_all_trained_weights_are_used(
    network: dict[str, Any], student: dict[str, Any], losses: dict[str, Any]
) -> None:
    """DDP waits for the gradient of every weight that needs one."""
    if network["kind"] == "mlp":
        student = {key: value for key, value in student.items() if key != "projected_channels"}
    if student.get("encoders") == "noise":
        losses = {"reconstruction": 0.0, "latent": 0.0}
    config = KDMConfig.model_validate({
        "encoder": network, "decoder": network, "latent": 64, "operator": {"kind": "dense"},
        **student})
    task = task_of(KDM(config, IMAGES), LossConfig.model_validate({"adversarial": 0.0, **losses}))
    task.descend(task.batches(0)[0], {})
    unused = [name for name, parameter in task.student.named_parameters()
              if parameter.requires_grad and parameter.grad is None]
    assert unused == []


@pytest.mark.parametrize(("device", "found"), [
    ("mps", "device: mps cannot be used by several processes"),
    ("cuda:0", "device: cuda:0 is one GPU and cannot serve 64 processes"),
    ("cuda:1", "device: cuda:1 is one GPU and cannot serve 64 processes"),
    ("cuda", "processes: 64 need a GPU each"),
])
def test_devices_that_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch, device: str, found: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    with pytest.raises(KDMError, match=found):
        own_device(torch.device(device))


def test_one_process_of_a_machine_has_a_gpu_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL and torch.cuda.set_device want one."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 0)
    assert own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("error", "lost"), [
    (torch.distributed.DistNetworkError("The client socket has timed out"), True),
    (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (KDMError("cannot write data/work/train_student@igloo: No space left on device"), False),
    (KeyboardInterrupt(), False),
])
def test_only_a_process_that_is_gone_is_a_loss(error: BaseException, lost: bool) -> None:
    assert is_loss(error) == lost


@pytest.mark.parametrize(("section", "values"), [
    (TorchrunTraining, {"engine": "torchrun", "rdzv_endpoint": "host:99999"}),
    (TorchrunTraining, {"engine": "torchrun", "rdzv_endpoint": "host:0"}),
    (DaskSampling, {"engine": "dask", "address": "tcp://host:70000"}),
])
def test_ports_that_are_none_are_refused(section: type[BaseModel], values: object) -> None:
    with pytest.raises(ValidationError, match="this is no"):
        section.model_validate(values)
