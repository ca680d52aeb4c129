"""The speed laboratory: updates and actions per second, how cost grows, where the time of a training goes."""
