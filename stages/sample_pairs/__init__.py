"""sample_pairs: noise and what the teacher makes of it, into a Zarr store."""
