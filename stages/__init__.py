"""The pipeline's stages, one file each, named after the stage in dvc.yaml."""
