"""The section `reference`: what samples are measured against besides the data."""



from kdm_core.config import Config
from kdm_core.metrics.classifier import ClassifierConfig
from kdm_core.training.config import TrainingConfig


class ClassifierParams(Config):
    """The classifier in whose features image sets are compared."""

    model: ClassifierConfig = ClassifierConfig()
    training: TrainingConfig


class ReferenceParams(Config):
    """What samples are measured against, besides the data: null for points and unlabelled data."""

    classifier: ClassifierParams | None
