"""Fault drills: real stage programs in a small project, disturbed at random instants.

Each drill repeats one fault. It must end with the bytes of an undisturbed run, or with an error
that names what to mend and, once it is mended, with those bytes; anything else raises `Failure`.
`python -m tests.drills` runs them all and writes the table of docs/reliability.md.
"""
