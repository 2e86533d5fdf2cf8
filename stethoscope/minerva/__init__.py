"""Judging: problems, prompts, grades, and the paired comparison of two arms."""
