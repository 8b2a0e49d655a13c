"""Training curves through DVCLive, as files for `dvc plots` and for the report."""

import io
import shutil
from contextlib import suppress
from pathlib import Path

from dvclive.live import Live
from PIL import Image
from scmrepo.exceptions import SCMError

from kdm_core.training.loop import Record
from pipeline.runtime import paths


class Files(Live):
    """DVCLive, also where git has no commit yet: of which it asks before it looks for one."""

    def _init_dvc(self) -> None:
        with suppress(SCMError):
            super()._init_dvc()


class Curves:
    """Writes each point of the curves as it comes.

    DVCLive's folder is written anew: a resumed run replays the points of its checkpoint first.
    """

    def __init__(self, name: str) -> None:
        self.folder: Path = paths.CURVES / name
        shutil.rmtree(self.folder, ignore_errors=True)
        # The pipeline's dvc.yaml declares the plots, and DVC makes the experiment.
        self.live = Files(str(self.folder), save_dvc_exp=False, dvcyaml=None,
                          monitor_system=False)

    def __call__(self, record: Record) -> None:
        self.live.step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                self.live.log_metric(name, value)
        self.live.make_summary()  # type: ignore[no-untyped-call]

    def picture(self, name: str, png: bytes) -> None:
        """Keep a picture, in the place of an earlier one of that name."""
        self.live.log_image(name, Image.open(io.BytesIO(png)))

    def end(self) -> None:
        self.live.end()  # type: ignore[no-untyped-call]
