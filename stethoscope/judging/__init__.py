"""What the answers of a benchmark allow one to say: its arms, paired comparisons, claims about layers, verdicts."""
