"""Base classes of the methods that imitate the behaviour in the data, and lean on the imitation."""
