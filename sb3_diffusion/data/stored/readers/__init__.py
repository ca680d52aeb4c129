"""The forms in which data are kept, one file each: what every reader yields is a recording."""
