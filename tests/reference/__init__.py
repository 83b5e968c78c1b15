"""Independent oracles: each formula as a plain loop over Python floats, written from the paper and not from src."""
