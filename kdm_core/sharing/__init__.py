"""Students for others: folders, the Hugging Face hub, model cards, and other formats."""
