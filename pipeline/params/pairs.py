"""The section `pairs`: sampled here, or there already."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kdm_core.config import Config
from kdm_core.errors import DataError
from kdm_core.pairs.location import check_url, local_path
from kdm_core.pairs.sampling import PairsConfig


class StoredPairs(Config):
    """Pairs that have been sampled already, by another project or by others.

    Attributes:
        location: their store, a folder or a URL (s3://, gs://, https://).
        content: the content hash that `kdm pairs verify` prints: other pairs stop the run.
    """

    source: Literal["store"]
    location: str = Field(min_length=1)
    content: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @field_validator("location")
    @classmethod
    def _without_secrets(cls, location: str) -> str:
        try:
            if local_path(location) is None:
                check_url(location, read_only=True)
        except DataError as error:
            raise ValueError(str(error)) from error
        return location


PairsParams = Annotated[PairsConfig | StoredPairs, Field(discriminator="source")]
