"""The state of any Optax transformation that contains Ember: its sharding, its conversion and its checkpoints."""
