"""Nuclei: instance segmentation with any encoder, and how well it does."""
