"""Which pairs students had better not see: near copies of training data, saturated samples, ..."""

from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.metrics.extractors import ExtractorConfig, ReferenceConfig
from kdm_core.networks.module import ImportPath
from kdm_core.pairs.keep import MAX_REASONS


class CopiesConfig(Config):
    """Near copies of training images.

    A sample is one if it is at most `threshold` times as far from a training image as training
    images are from the nearest other one in the median, or among the `quantile` of all samples
    that are nearest to any.

    Attributes:
        features: the extractor in whose features distances are taken; None for pixels (images)
            or coordinates (points).
        threshold, quantile: one of the two.
    """

    features: ExtractorConfig | None = None
    threshold: float | None = Field(None, gt=0)
    quantile: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_rule(self) -> "CopiesConfig":
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError("threshold: give it or quantile, one of the two")
        return self

    @property
    def space(self) -> str:
        """Where distances are taken: `pixels` or the extractor's name."""
        return "pixels" if self.features is None else self.features.name

    @property
    def words(self) -> str:
        """The space in words."""
        return "pixels" if self.features is None else f"features of {self.features.name}"

    @property
    def reason(self) -> str:
        return f"copies_{self.space}"


class FilterConfig(Config):
    """What speaks against a pair of the train and validation splits.

    Attributes:
        not_finite: whether to leave out pairs with values that are not finite. Stores that this
            project writes have none; with others' it is an error if samples are not finite
            and this is not set.
        saturated: largest share of an image's values that may be at the ends of the range; None
            for any.
        copies: of training images, each in a space of its own.
        rules: functions of the user's, as `package.module:function`; see
            `kdm_core.pairs.filtering.rules`.
        trust_code: whether they may be imported and run.
    """

    not_finite: bool = False
    saturated: float | None = Field(None, ge=0, lt=1)
    copies: list[CopiesConfig] = []
    rules: list[ImportPath] = []
    trust_code: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "FilterConfig":
        if self.rules and not self.trust_code:
            raise ValueError("rules are code that is run on this machine, with all that you may "
                             "do; if you know and trust it, set trust_code: true")
        reasons = self.reasons
        if twice := sorted({name for name in reasons if reasons.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} stands there twice; leave one out")
        if len(reasons) > MAX_REASONS:
            raise ValueError(f"{len(reasons)} reasons are more than the {MAX_REASONS} that a mask "
                             "has room for; join some rules to one")
        return self

    @property
    def reasons(self) -> list[str]:
        """The names of all that can speak against a pair; none where all are kept."""
        return [*["not_finite"] * self.not_finite, *["saturated"] * (self.saturated is not None),
                *(one.reason for one in self.copies), *self.rules]

    @property
    def texts(self) -> dict[str, str]:
        """The reasons in words, code in backticks."""
        known = {"not_finite": "Values that are not finite",
                 "saturated": f"More than {self.saturated or 0:.1%} of the values at the ends of "
                              "the range",
                 **{one.reason: f"Near copies of training data in {one.words}"
                    for one in self.copies}}
        return {name: known.get(name, f"Not kept by `{name}`") for name in self.reasons}

    @property
    def needs_classifier(self) -> bool:
        """Whether distances are taken in features of the run's own classifier."""
        return any(isinstance(one.features, ReferenceConfig) for one in self.copies)

    def problems_with(self, samples: str) -> list[str]:
        """What is for images only, and what to do instead; `samples` are what there is, in words.
        """
        problems = [f"copies: {one.space} is for images; leave out features, to compare "
                    "the values" for one in self.copies if one.features is not None]
        if self.saturated is not None:
            problems.append(f"saturated: {samples} have no ends of a range; leave it out")
        return problems
