"""Weights files: what bundles state of them, loading, fetching, vendoring."""
