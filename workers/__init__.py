"""Talks to agents and appends what they say to the log; knows nothing of connections."""
