"""Search for hyperparameters with a study of Optuna that several processes may share."""
