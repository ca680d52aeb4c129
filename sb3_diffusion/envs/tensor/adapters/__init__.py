"""Simulators that exist already, and how each of them comes to speak our tensors."""
