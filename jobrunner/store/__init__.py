"""What is remembered. The only SQL of jobrunner is in this package."""
