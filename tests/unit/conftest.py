"""How hypothesis looks for counterexamples: without a clock of its own, and without files in the checkout."""

from hypothesis import settings

settings.register_profile("jobrunner", database=None, deadline=None, max_examples=60, print_blob=True)
settings.load_profile("jobrunner")
