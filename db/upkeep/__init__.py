"""What upkeep asks of the database: what to look at, and what to remove because its time is over. Each call takes so
many rows at most, and locks little."""
