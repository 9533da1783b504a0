"""What training with Ember comes to, against other optimizers of the token tables: a sweep that can be interrupted, and its page.

`python -m benchmarks.evidence --help`; README.md of the folder above says what is compared and how. The models, texts and
training steps are those of the example programs (`examples/lm`).
"""
