"""The tables and figures of the KDM paper as commands: what it has, and what is measured here."""
