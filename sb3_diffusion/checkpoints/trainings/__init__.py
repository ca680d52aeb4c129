"""Trainings that are stored while they run, and continue as if nothing had happened."""

from sb3_diffusion.checkpoints.trainings.callback import CLOCKS, CannotContinue, TrainingCheckpoints, TrainingStopped

__all__ = ["CLOCKS", "CannotContinue", "TrainingCheckpoints", "TrainingStopped"]
