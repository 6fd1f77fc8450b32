"""The `bff` command."""
