"""Trainings: the manager over rl-zoo3's, searching, tracking, what is done at the end."""
