"""Sparse autoencoders: one per layer, firing rates per document, and layer specificity."""
