"""What every program of a stage does besides its work, and what decides its result."""
