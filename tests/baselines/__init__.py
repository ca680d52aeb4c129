"""Tests of the methods that the others are measured against."""
