"""The figures of docs/how.md, from a calibration of the embedded pipeline.

slimdiff calibrate emoji -o STATS
python -m benchmarks.figures STATS
"""
