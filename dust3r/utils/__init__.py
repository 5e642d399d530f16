"""Helpers under their official names."""
