"""How critics learn where they do not by the mean of a temporal-difference target."""
