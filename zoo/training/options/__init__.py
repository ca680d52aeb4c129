"""What a training is asked for: options, settings, names, devices, and what is said when they are wrong."""
