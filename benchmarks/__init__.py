"""Measurements, drills and evidence for ember_optax; see README.md here. Run the programs from the checkout with `python -m`."""
