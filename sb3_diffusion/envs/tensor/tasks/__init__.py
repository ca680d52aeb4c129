"""Tasks that are written in PyTorch: thousands of copies on a CPU, with nothing to install."""
