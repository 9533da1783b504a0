"""Adapters for single libraries. Each module imports its library, and nothing else in ember_optax imports these modules."""
