"""Python's garbage collector in a process that runs for months."""

import gc


def settle() -> None:
    """Tell the collector that what is loaded by now stays, and to look less often at what comes.

    For a process that is about to do its work, or to fork those that do: pages
    that nobody looks at stay shared. A request or a job leaves next to nothing
    that only the collector can free, and its default is a look at every 700 objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
