"""Modules for `evaluate.load(<folder>)`."""
