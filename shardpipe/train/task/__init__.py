"""What is trained: units, features, model, losses and error rates."""
