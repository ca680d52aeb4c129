"""Tests of the methods of policy gradients."""
