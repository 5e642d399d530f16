"""Image, depth and intrinsics operations of the data pipeline."""
