"""`training`: steps a second of students of every kind, and of the published recipe."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch

from benchmarks.gpu.bench import Bench, Job, Row, with_weights
from benchmarks.gpu.measuring import flops_of, forget_memory, most_memory, once, wait
from benchmarks.gpu.recipes import Recipe, recipes
from benchmarks.gpu.weights import vgg_weights
from kdm_core.compute import Precision, seeded
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import Window
from kdm_core.training.waiting import Waiting
from kdm_core.values import from_uint8

COMPILED_S, EAGER_S = 110.0, 35.0
BETWEEN_POINTS = 50
"""Steps after which the curves are fetched, as a training does at its `log_every`."""
COMPILED = ("paper", "kdm", "direct", "rectified_flow", "hierarchical", "mean_flow", "get",
            "paper-f")
MOST_STEPS = 10**6


def jobs(bench: Bench) -> list[Job]:
    """Those that most depends on come first; what there is no time for is left out."""
    eager: list[tuple[str, Precision]] = [
        ("paper", "fp32"), *((name, "bf16") for name in recipes(bench.scale))]
    compiled = COMPILED[:1] if bench.scale.trial else COMPILED
    return [*(job(bench, name, precision, False) for name, precision in eager),
            *(job(bench, name, "bf16", True) for name in compiled)]


def job(bench: Bench, name: str, precision: Precision, compiled: bool) -> Job:
    label = f"{name}, {precision}{', compiled' if compiled else ''}"
    return Job(label, COMPILED_S if compiled else EAGER_S,
               partial(measure, bench, name, precision, compiled))


def random_pairs(bench: Bench, count: int) -> Pairs:
    """As they lie on a device: noise in float16, samples in uint8. Their content costs nothing."""
    shape, device = bench.scale.spec.sample_shape, bench.device
    noise = torch.empty(count, *shape, dtype=torch.float16, device=device)
    for part in noise.split(50_000):
        part.copy_(torch.randn(part.shape, device=device))
    samples = torch.randint(256, (count, *shape), dtype=torch.uint8, device=device)
    return Pairs(noise, samples, torch.full((count,), -1, device=device))


def held_out(pairs: Pairs) -> Pairs:
    """A few, in float32, as a student may look at before it is trained."""
    return Pairs(pairs.noise[:8].float(), from_uint8(pairs.samples[:8]), pairs.labels[:8])


def task_of(bench: Bench, recipe: Recipe, precision: Precision, compile: Literal["on", "off"]
            ) -> StudentTask:
    config = TrainingConfig.model_validate({
        **recipe.training, "steps": MOST_STEPS, "batch": bench.scale.batch,
        "precision": precision, "compile": compile})
    pairs = random_pairs(bench, bench.scale.pairs)
    with seeded(0):
        student = recipe.config.build(bench.scale.spec)
        with_weights(student)
    reader = ResidentReader.of(pairs, config.batch, seed=0)
    return StudentTask(student.to(bench.device), recipe.objective, config, reader,
                       held_out(pairs), seed=0)


@cache
def flops_of_step(bench: Bench, name: str, precision: Precision) -> int:
    """Operations of a step, which a compiled one does not tell."""
    with vgg_weights():
        task = task_of(bench, recipes(bench.scale)[name], precision, "off")
        return flops_of(lambda: task.seeded_step(0))


def measure(bench: Bench, name: str, precision: Precision, compiled: bool) -> Row:
    device, scale = bench.device, bench.scale
    flops = flops_of_step(bench, name, precision)
    forget_memory(device)
    with vgg_weights() as origin:
        task = task_of(bench, recipes(scale)[name], precision, "off")
    if compiled:
        bench.compile(task.objective)
    first = once(lambda: task.seeded_step(0), device)
    per_second, waiting = pace(task.seeded_step, task.prepare, device, scale.seconds)
    looks = recipes(scale)[name].objective.distance.kind == "lpips"
    return {
        "precision": precision, "compiled": compiled, "batch": scale.batch,
        "parameters": sum(p.numel() for p in task.student.parameters()),
        "lpips_weights": origin if looks else None,
        "steps_per_s": per_second, "first_step_s": first, "tflop_per_step": flops / 1e12,
        "share_of_bf16_peak": flops * per_second / bench.peak, "waiting_share": waiting,
        "peak_memory_gb": most_memory(device),
    }


def pace(
    step: Callable[[int], dict[str, torch.Tensor]], prepare: Callable[[int], None],
    device: torch.device, seconds: float,
) -> tuple[float, float]:
    """Steps a second and the share of the time that the device waits, of steps as `fit` does them,
    without checkpoints and validation."""
    waiting, window = Waiting(device), Window()
    per_point = BETWEEN_POINTS if seconds else 1
    number = first = 0
    start = 0.0 if seconds else time.perf_counter()  # a trial has no steps to warm up
    while True:
        for _ in range(per_point):
            number += 1
            prepare(number)
            with waiting.step():
                window.add(step(number))
        window.close()
        waiting.pause()
        wait(device)
        if not start:  # the steps before were to warm up
            start, first = time.perf_counter(), number
            waiting = Waiting(device)
        elif time.perf_counter() - start >= seconds:
            return (number - first) / (time.perf_counter() - start), waiting.share
