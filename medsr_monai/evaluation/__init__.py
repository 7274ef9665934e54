"""What a result is worth: methods side by side over a test set."""
