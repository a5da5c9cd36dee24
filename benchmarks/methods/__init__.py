"""The paper's method, its peers and ours slim one pipeline to one parameter count.

    python -m benchmarks.methods [--work DIR] [--quick] [--threads N]

``settings``    what is run, as data
``bench``       one pipeline, its calibrations, and the slim model of any cell
``peers``       random, magnitude, OBS-Diff and SVD-LLM, each in a file of its own, and
                OBS-Diff with ranks measured as ours are
``cells``       errors of every (method, policy, pool, seed), one JSON file each; a run resumes
``ablation``    from the paper's method to ours, step by step, and kind by kind at equal ranks
``pictures``    what the pictures of five methods are worth
``robustness``  other schedulers, steps and guidance than calibrated with
``tables``      results.json, table.md, error.png
"""
