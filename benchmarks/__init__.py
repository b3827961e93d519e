"""What Zart costs beside what the disk, SQLite and Postgres allow: ``python -m benchmarks``."""
