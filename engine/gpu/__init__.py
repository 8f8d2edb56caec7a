"""Elementwise layers on a GPU in one kernel each, where transformers' code takes seven to ten."""
