"""Grids of trainings: cells and their locks, workers, local or on a Ray cluster, statistics and the page about them."""
