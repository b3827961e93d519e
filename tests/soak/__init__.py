"""One long run of everything that is random or long, in the minutes it is given, with one report at its end.

python -m tests.soak --minutes 30 --seed 7
"""
