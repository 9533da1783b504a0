"""Arrays in, arrays out: the mathematics of Ember, without trees, names and checks of what users pass."""
