"""Coarse-to-fine tiles and helpers under their official names."""
