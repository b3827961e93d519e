"""A workload that verifies the whole engine: random programs on real worker processes, with what each must do told beforehand.

python -m tests.verification --seed 7 --minutes 30 --store postgres
"""
