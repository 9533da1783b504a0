"""The transformation and its alias, their hyperparameters, and what applies updates to parameters."""
