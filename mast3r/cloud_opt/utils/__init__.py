"""Losses and schedules of sparse alignment under their official names."""
