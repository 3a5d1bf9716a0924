"""Measurements; see README.md in this directory."""
