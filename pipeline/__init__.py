"""All about running: parameters, programs, workers, projects, Prefect, the command, the report."""
