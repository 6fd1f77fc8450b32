"""What docker compose needs and no repository may hold: new secrets, and a client's key.

Writes `.env` (server secret, Redis' password, the client's key) and `agents.compose.yaml` (agents.yaml
with that client). What is there already is never overwritten: a new secret voids every key.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import yaml

from cli.keys import key_entry
from gateway.auth import new_key

CLIENT = "compose"


def main(folder: Path) -> int:
    """Write both files into `folder`, where agents.yaml is. Returns the exit status."""
    env, config = folder / ".env", folder / "agents.compose.yaml"
    for path in (env, config):
        if path.exists():
            print(f"{path.name} exists; remove it first if its secrets are to be replaced", file=sys.stderr)
            return 1
    agents = (folder / "agents.yaml").read_text("utf-8")
    if "clients" in yaml.safe_load(agents):
        print("agents.yaml names clients of its own: copy it to agents.compose.yaml by hand", file=sys.stderr)
        return 1
    secret = secrets.token_urlsafe(32)
    text, key = new_key(CLIENT, secret.encode())
    entry = key_entry(key, ["run", "read"], ["*"])
    clients = yaml.safe_dump({"clients": {CLIENT: {"keys": [entry]}}}, sort_keys=False)
    config.write_text(f"{agents}\n{clients}", "utf-8")
    lines = (f"BFF_SECRET={secret}", f"REDIS_PASSWORD={secrets.token_hex(24)}", f"BFF_API_KEY={text}")
    descriptor = os.open(env, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("wrote .env and agents.compose.yaml; clients use the BFF_API_KEY in .env")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
