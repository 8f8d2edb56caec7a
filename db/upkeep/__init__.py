"""What is removed when its time is over, in steps that each lock little and commit."""
