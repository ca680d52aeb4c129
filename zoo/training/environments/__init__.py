"""Environments of a run: how they are made, and whether algorithm and settings fit them."""
