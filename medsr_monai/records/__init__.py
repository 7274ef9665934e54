"""What is written down beside outputs and weights, and read again."""
