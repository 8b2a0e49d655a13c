"""Reading pairs: a split as a whole, or batches of it in a seeded order."""
