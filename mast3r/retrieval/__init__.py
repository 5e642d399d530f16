"""Which images to pair when there are too many for all pairs."""
