"""What Zart costs beside what the disk and SQLite allow: ``python -m benchmarks``."""
