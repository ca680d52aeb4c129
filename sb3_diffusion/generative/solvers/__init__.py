"""Reverse chains of variance-preserving diffusion: their grids, the rules of integration, and what runs them."""
