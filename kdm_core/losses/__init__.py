"""What students are trained on and compared by: distances, LPIPS, the adversary."""
