"""Autoencoders: what turns images into latents, and latents into images."""
