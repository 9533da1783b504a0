"""A small language-model training kit that the example programs share."""
