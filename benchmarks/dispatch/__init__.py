"""The dispatch line by itself, with an engine that computes nothing: how fast rows pass, how soon the first one is
answered, what a kill costs, and how tenants share."""
