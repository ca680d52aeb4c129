"""Data sets: transitions that somebody stored, in files and in memory."""
