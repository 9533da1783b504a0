"""What training with Ember comes to, against other optimizers."""
