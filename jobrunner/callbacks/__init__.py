"""Sends callbacks: the outbox is worked off by threads beside those that run jobs."""
