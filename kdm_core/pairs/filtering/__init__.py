"""Which pairs students had better not see."""
