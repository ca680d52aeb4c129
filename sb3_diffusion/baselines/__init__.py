"""Methods that the others are measured against, the Gaussian policy among them."""
