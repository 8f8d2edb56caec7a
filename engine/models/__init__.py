"""From a model's source to a generator: what is served, weights as a device likes them, the proof, memory budget."""
