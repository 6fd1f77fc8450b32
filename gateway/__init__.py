"""Holds the connections of front ends and knows how they are spoken to; never talks to an agent."""
