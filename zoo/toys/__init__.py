"""Policies on the two-dimensional toys: how they are trained there, and pictures of what they sample."""
