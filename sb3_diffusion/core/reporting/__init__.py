"""What a training tells of itself: metrics, progress, and why it diverged."""
