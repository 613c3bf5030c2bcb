"""Is the phantom fit to learn from? `python -m cspine_utils.phantom.acceptance` measures it; see `__main__`."""
