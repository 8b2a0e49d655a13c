"""The pipeline as a Prefect flow, its deployment and what it shows there."""
