"""Images a second of students and teacher, from the results of the last run in data/."""

import statistics

import torch

from benchmarks.timing import ratio, rounds
from kdm_core.compute import resolve_device
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.sharing.folder import load_student
from kdm_core.teachers import load_sampled
from pipeline.runtime import paths

BATCH, ROUNDS = 500, 7


def main() -> None:
    device = resolve_device()
    store = PairStore.open(paths.PAIRS)
    test = read_split(store, "test", device)
    noise = test.noise[:BATCH]
    labels = store.spec.samples.told(test.labels[:BATCH])
    teacher = load_sampled(paths.TEACHER, store.spec.guidance)[0].to(device)
    candidates = {"teacher": lambda: teacher.sample(noise, labels, store.spec.solver,
                                                    store.spec.precision)}
    for folder in sorted(paths.STUDENTS.iterdir()):
        student = load_student(folder)[0].to(device)
        candidates[folder.name] = lambda s=student: s.generate(noise, labels, store.spec.precision)
    seconds = rounds(candidates, ROUNDS)
    print(f"{device}, {torch.get_num_threads()} threads, batch {BATCH}, {store.spec.precision}")
    for name, times in seconds.items():
        rate = BATCH / statistics.median(times)
        print(f"{name:>12} {rate:12,.0f} images/s   {ratio(seconds['teacher'], times)}")


if __name__ == "__main__":
    main()
