"""What happens to two photos, step by step; `mast3r.predictor` and `mast3r.matching` put the steps together."""
