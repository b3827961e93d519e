"""Small complete programs: run one with ``python -m examples.NAME``."""
