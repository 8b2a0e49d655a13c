"""The section `report`."""


from pydantic import Field, field_validator

from kdm_core.config import Config
from kdm_core.pairs.location import writable_location


class ReportParams(Config):
    """What the report is called, and where else it goes.

    Attributes:
        title: the heading of the report.
        publish: a folder or a URL (s3://, gs://) to which report and figures are copied as well.
    """

    title: str = "One-step distillation"
    publish: str | None = Field(None, min_length=1)

    @field_validator("publish")
    @classmethod
    def _writable(cls, publish: str | None) -> str | None:
        return publish if publish is None else writable_location(publish)
