"""Recipes as people handle them: files and links, strengths by layer, and which weights a recipe reaches."""
