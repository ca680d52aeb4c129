"""Reparameterisation: the critic's value is maximised through the sampling chain."""
