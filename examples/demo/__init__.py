"""A worker is killed half way through real work, and another one finishes it: run ``python -m examples.demo``."""
