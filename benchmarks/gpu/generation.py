"""`generation`: images a second of students, in one evaluation each."""

from functools import partial

import torch

from benchmarks.gpu.bench import Bench, Job, Row, with_weights
from benchmarks.gpu.measuring import forget_memory, most_memory, once, seconds_of
from benchmarks.gpu.recipes import recipes
from kdm_core.compute import Precision, seeded

STUDENTS = {"paper": "KDM", "direct": "the teacher's network"}
COMPILED_S, EAGER_S = 60.0, 15.0


def jobs(bench: Bench) -> list[Job]:
    sizes = bench.scale.generated
    each = [(batch, "bf16", False) for batch in sizes]
    each += [(sizes[-1], "fp32", False), (sizes[-1], "bf16", True)]
    return [Job(f"{title}, batch {batch}, {precision}{', compiled' if compiled else ''}",
                COMPILED_S if compiled else EAGER_S,
                partial(measure, bench, name, batch, precision, compiled))
            for name, title in STUDENTS.items() for batch, precision, compiled in each]


def measure(bench: Bench, name: str, batch: int, precision: Precision, compiled: bool) -> Row:
    device, scale = bench.device, bench.scale
    forget_memory(device)
    with seeded(0):
        student = recipes(scale)[name].config.build(scale.spec)
        with_weights(student)
    student.to(device).eval().requires_grad_(False)
    if compiled:
        bench.compile(student)
    noise = torch.randn(batch, *scale.spec.sample_shape, device=device)
    first = once(lambda: student.generate(noise, None, precision), device)
    seconds = seconds_of(lambda: student.generate(noise, None, precision), device,
                         scale.seconds / 4)
    return {"precision": precision, "compiled": compiled, "batch": batch,
            "parameters": sum(p.numel() for p in student.parameters()),
            "images_per_s": batch / seconds, "ms_per_batch": 1000 * seconds,
            "first_batch_s": first, "peak_memory_gb": most_memory(device)}
