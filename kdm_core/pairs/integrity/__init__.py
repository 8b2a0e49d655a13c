"""Whether a store is whole, and making it whole again."""
