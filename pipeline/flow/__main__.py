"""`python -m pipeline.flow`: the flow, once, here."""

from pipeline.flow.flow import main

main()
