"""Command-line tools: a thin layer over rl-zoo3 with the algorithms, settings and environments of ``sb3_diffusion``."""
