"""What the path costs, as a ratio to a pass-through proxy measured in the same run."""
