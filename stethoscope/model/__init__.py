"""The model: loading and checks, roles of matrices, residual stream, greedy generation and likelihoods."""
