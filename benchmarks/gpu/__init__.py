"""What only a GPU can show, measured in one command: `python -m benchmarks.gpu`.

It needs what `kdm_core` needs and nothing else: no DVC, no Prefect, no network. So a machine that
is there for half an hour and has Python and torch alone can run it (`make gpu-bundle`).
"""
