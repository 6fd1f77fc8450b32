"""What the gateway and the workers agree on: events, the log, jobs, configuration."""
