"""What values states and actions."""
