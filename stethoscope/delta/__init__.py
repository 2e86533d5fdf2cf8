"""Task vectors: read them, measure what a subspace keeps of them, put them into the model and take them out again."""
