"""Running claimed chunks: requests out to the engine, outcomes back into the database, under a lease."""
