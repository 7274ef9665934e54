"""Weights files: what bundles state of them, how they are loaded, and the code that goes with them."""
