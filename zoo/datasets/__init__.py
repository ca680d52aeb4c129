"""What ``zoo/data.py`` does with data sets: fetch them, look at them, make them."""
