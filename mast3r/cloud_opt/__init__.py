"""Sparse global alignment (MASt3R-SfM): cameras and depth of many images from pairwise predictions and matches."""
