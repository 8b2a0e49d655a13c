"""The section `evaluation`: what is measured."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from kdm_core.config import Config
from kdm_core.losses.trunks import Net
from kdm_core.metrics.extractors import ExtractorConfig


class EvaluationParams(Config):
    """What is measured, and at what cost; all pairs of the test split are used.

    Attributes:
        extractors: in whose features sets of images are compared.
        reference: the split of the data that they are compared with; the other one is measured
            beside the models, as far as it goes.
        statistics: by an extractor's name, a file with published mean and covariance (npz with mu
            and sigma) to measure against in place of the data.
        bootstrap: resamples behind every confidence interval; 0 leaves the intervals out.
        lpips: networks of LPIPS.
        lpips_pairs: pairs on which LPIPS is measured; 0 leaves it out.
        lpips_resolution: smaller images are enlarged to this many pixels for LPIPS.
        timing_images: images generated to measure the speed of teacher and student.
        projections: directions of the sliced Wasserstein distance (points).
    """

    extractors: list[ExtractorConfig] = []
    reference: Literal["train", "test"] = "train"
    statistics: dict[str, str] = {}
    bootstrap: int = Field(200, ge=0)
    lpips: list[Net] = ["vgg"]
    lpips_pairs: int = Field(1000, ge=0)
    lpips_resolution: int = Field(64, ge=32)
    timing_images: int = Field(1000, ge=1)
    projections: int = Field(128, ge=1)

    @field_validator("lpips_pairs")
    @classmethod
    def _permutable(cls, pairs: int) -> int:
        if pairs == 1:
            raise ValueError("a single pair cannot be permuted; use 2 or more, or 0 for none")
        return pairs

    @model_validator(mode="after")
    def _names(self) -> "EvaluationParams":
        names = [config.name for config in self.extractors]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"extractors: {', '.join(twice)} stands there twice")
        if unknown := sorted(set(self.statistics) - set(names)):
            raise ValueError(f"statistics: there is no extractor {', '.join(unknown)}; extractors "
                             f"has {', '.join(names) or 'none'}")
        return self
