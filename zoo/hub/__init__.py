"""Agents in the layout of the Hugging Face Hub: written, checked, sent, received, read."""
