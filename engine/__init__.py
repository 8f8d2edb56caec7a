"""The model runtime: the process that owns one device and the models on it. The only home of torch."""
