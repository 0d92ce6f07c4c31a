"""The rules of training, without the learning."""
