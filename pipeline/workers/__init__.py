"""Who does the work of a stage: this process, others of this machine, or a Dask cluster."""
