"""The update: which parts it has, and how they are executed."""
