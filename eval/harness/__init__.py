"""The benchmarks as tasks of EleutherAI's lm-evaluation-harness (`lm_eval --include_path DIR`).

`tasks` writes a folder: a YAML file a benchmark, its rows, and `processing.py`, which the YAML files name and which
takes its functions from `judging`. The harness asks the model; reading and judging the answers stays ours.
"""
