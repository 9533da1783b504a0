"""`scale_by_ember`, its alias `ember`, `stochastic_rounding`, and the checks of their arguments."""
