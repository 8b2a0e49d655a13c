"""The section `reference`: what samples are measured against besides the data."""



from kdm_core.config import Config
from kdm_core.metrics.classifier import ClassifierConfig
from kdm_core.training.config import TrainingConfig


class ClassifierParams(Config):
    """The classifier in whose features image sets are compared.

    Attributes:
        model: its size.
        training: how long, on what batches and how fast.
    """

    model: ClassifierConfig = ClassifierConfig()
    training: TrainingConfig


class ReferenceParams(Config):
    """What samples are measured against, besides the data.

    Attributes:
        classifier: the network in whose features image sets are compared, trained on the data's
            labels; null for points and unlabelled data.
    """

    classifier: ClassifierParams | None
