"""Network building blocks and the CroCo model."""
