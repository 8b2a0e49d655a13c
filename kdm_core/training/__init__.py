"""Training: one loop for teachers, students and classifiers, and its components."""
