"""The model: loaded and checked, its matrices by role, its residual stream, its greedy text and its likelihoods."""
