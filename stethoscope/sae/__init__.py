"""Sparse autoencoders: one a layer, what fires in which document, and which layers are specific to a subject."""
