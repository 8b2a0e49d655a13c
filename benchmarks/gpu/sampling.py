"""`sampling`: pairs a second of a teacher of EDM's size, as a pair store is filled."""

from functools import partial

import torch
from pydantic import TypeAdapter

from benchmarks.gpu.bench import Bench, Job, Row, with_weights
from benchmarks.gpu.measuring import flops_of, forget_memory, most_memory, once, seconds_of
from kdm_core.compute import Precision, autocast, seeded
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_batch
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import DenoiserConfig, build_teacher
from kdm_core.teachers.base import Teacher

COMPILED_S, EAGER_S = 130.0, 40.0


def jobs(bench: Bench) -> list[Job]:
    smallest = bench.scale.sampled[0]
    found = [job(bench, batch, "bf16", False) for batch in bench.scale.sampled]
    found += [job(bench, batch, "bf16", True) for batch in bench.scale.sampled]
    return [*found, job(bench, smallest, "fp32", False)]


def job(bench: Bench, batch: int, precision: Precision, compiled: bool) -> Job:
    name = f"batch {batch}, {precision}{', compiled' if compiled else ''}"
    return Job(name, COMPILED_S if compiled else EAGER_S,
               partial(measure, bench, batch, precision, compiled))


def random_teacher(bench: Bench) -> Teacher:
    """EDM's DDPM++; what it makes looks like nothing and costs the same."""
    config = TypeAdapter(DenoiserConfig).validate_python(
        {"kind": "denoiser", "network": bench.scale.teacher})
    with seeded(0):
        teacher = build_teacher(config, bench.scale.spec)
        with_weights(teacher)
    return teacher.to(bench.device).eval().requires_grad_(False)


def measure(bench: Bench, batch: int, precision: Precision, compiled: bool) -> Row:
    device, scale = bench.device, bench.scale
    forget_memory(device)
    teacher = random_teacher(bench)
    config = PairsConfig(
        solver=FixedSolver(kind="heun", steps=scale.solver_steps), train=batch, validation=2,
        test=2, precision=precision, batch=batch, shard=batch, chunk=batch)
    spec = plan_store(config, teacher, "0" * 64, None, 0, device)
    x = torch.randn(batch, *scale.spec.sample_shape, device=device)
    with torch.inference_mode(), autocast(precision, device):
        flops = flops_of(lambda: teacher.denoise(x, torch.ones((), device=device), None))
    if compiled:
        assert isinstance(teacher.network, torch.nn.Module)
        bench.compile(teacher.network)
    first = once(lambda: sample_batch(spec, teacher, 0, device), device)
    seconds = seconds_of(lambda: sample_batch(spec, teacher, 1, device), device, scale.seconds)
    assert spec.nfe is not None
    return {
        "precision": precision, "compiled": compiled, "batch": batch, "evaluations": spec.nfe,
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "images_per_s": batch / seconds, "first_batch_s": first,
        "tflop_per_image": flops * spec.nfe / batch / 1e12,
        "share_of_bf16_peak": flops * spec.nfe / seconds / bench.peak,
        "peak_memory_gb": most_memory(device),
    }
