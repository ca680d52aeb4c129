"""The arguments that algorithms have in common: their types and their checks."""
