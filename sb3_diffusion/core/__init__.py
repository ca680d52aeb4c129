"""What all algorithms share: the training loop, randomised estimators, execution modes."""
