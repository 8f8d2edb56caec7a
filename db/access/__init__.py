"""Who may use the place: keys, and the limits of tenants."""
