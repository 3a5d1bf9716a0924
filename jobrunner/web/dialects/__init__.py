"""The HTTP dialects of other services: a module each, and what several of them share."""
