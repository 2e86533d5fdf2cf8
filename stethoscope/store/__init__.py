"""What is kept: content ids, blobs that are verified on every read, and the runs, recipes and graded items in SQLite."""
