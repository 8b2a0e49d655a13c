"""Students: Koopman Distillation Models and their training."""
