"""Storage: content ids, blobs verified on every read, and runs, recipes and graded answers in SQLite."""
