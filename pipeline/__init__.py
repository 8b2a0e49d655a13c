"""What is about running: the schema of the parameters, the Prefect flow, the command line."""
