"""jobrunner: runs commands and scripts for whoever may ask over HTTP, and remembers them."""

__version__ = "0.1.0"
