"""Task vectors: reading, energy within subspaces, and applying edits to the model and removing them."""
