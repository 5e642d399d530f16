"""Crops and correspondences of the MASt3R data pipeline."""
