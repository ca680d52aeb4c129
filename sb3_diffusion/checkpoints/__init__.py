"""Agents that travel to other machines, and trainings that continue."""
