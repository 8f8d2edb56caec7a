"""What keeps jobs moving without a device: validation, finalization, the repair of what crashes leave behind."""
