"""The commands of `epochd` that ask a service; `service/cli.py` puts them together."""
