"""What is kept: content ids, blobs verified on every read, and the runs, recipes and graded items in SQLite."""
