"""prepare_data: the real samples, in one layout, split into train and test."""

from kdm_core.datasets import load_dataset, save_dataset
from kdm_core.errors import placed
from kdm_core.serialization import write_json
from pipeline.params.fitting import check_against, check_source
from pipeline.runtime import paths
from pipeline.runtime.runner import Stage, run


def main(stage: Stage) -> None:
    params = stage.params
    with placed("data"):
        dataset = load_dataset(params.data, stage.seed("data"),
                               getattr(params.pairs, "location", None))
    check_against(params, dataset.info.samples, dataset.info)
    check_source(params, dataset.info.samples)
    folder, _ = stage.work_folder(params.data.model_dump())
    save_dataset(folder / "result", dataset)
    stage.finish(folder / "result", paths.DATASET)
    info = dataset.info
    stage.say(f"{info.source if info.real else 'no data, samples of pairs instead'}: {info.train} "
              f"training and {info.test} test samples of shape {info.samples.shape}, "
              f"{len(info.class_names)} classes")
    write_json(paths.DETAILS / "prepare_data.json", {
        "train": info.train, "test": info.test, "classes": len(info.class_names)})
    stage.write_timing()


if __name__ == "__main__":
    run("prepare_data", main)
