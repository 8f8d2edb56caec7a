"""Commands for whoever runs the place: queues and their pauses, and usage."""
