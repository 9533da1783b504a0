"""The example programs. They import their common package as `lm`; code outside of this folder imports it as `examples.lm`."""
