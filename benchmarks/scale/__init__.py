"""What a large database does to the statements that everything waits for: claim, dispatch, reconcile, progress."""
