"""What is learned from: transitions, and how they are stored."""
