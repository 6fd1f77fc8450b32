"""A server that plays agents: for `bff dev`, which needs no account, and for the tests."""

from cli.scripted.script import Script
from cli.scripted.server import KEY, ScriptedAgents

__all__ = ["KEY", "Script", "ScriptedAgents"]
