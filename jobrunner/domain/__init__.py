"""The words and rules of jobrunner. Standard library only; no I/O and no clock."""
