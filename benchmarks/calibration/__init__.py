"""What calibration must look like: how many prompts, which, how many steps, which weights.

Each variant changes one thing about the default; its statistics are cut to one pool share by the
default recipe and compared with the dense pipeline on the same held-out prompts. Results are kept
a file each, so an interrupted run goes on. ``python -m benchmarks.calibration --quick`` takes
seconds, the full run hours.
"""
