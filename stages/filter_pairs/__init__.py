"""filter_pairs: which pairs students are not shown, and why, into a mask beside the store."""
