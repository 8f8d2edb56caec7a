"""Smaller weights by bitsandbytes: a model directory becomes another one, with figures that say what was lost."""
