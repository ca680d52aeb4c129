"""Ratios of densities, by which on-policy methods weigh actions: what stands for them, and the losses made of them."""
