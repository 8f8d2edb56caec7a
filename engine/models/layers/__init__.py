"""Layers of a model that native ones may replace: one by one, and those of a common decoder all at once."""
