"""Trainings: algorithms and settings, the manager over rl-zoo3's, what a run leaves behind, searching, resuming, tracking."""

#: The name of the package of all commands, which depends on whether the library is installed or cloned.
ZOO = __name__.rpartition(".")[0]
