"""Weighted matching: the denoising regression is weighted by a function of the critic's value."""
