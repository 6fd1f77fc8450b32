"""What docs/operations.md tells operators to do works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from tests.support.procs import ROOT, Child, python
from tests.support.redis_server import RedisServer, free_port

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_documented_redis_user_may_do_all_that_is_needed_and_no_more(tmp_path: Path) -> None:
    (rule,) = re.findall(r"^ACL SETUSER .*$", PAGE, re.MULTILINE)
    with RedisServer(tmp_path) as server, server.client() as admin:
        admin.execute_command(*shlex.split(rule.replace("PASSWORD", "secret")))
        port = free_port()
        unset = dict.fromkeys(("OPENAI_API_KEY", "DIFY_URL", "BFF_API_KEY", "BFF_SECRET"), "")
        redis_url = f"redis://bff:secret@127.0.0.1:{server.port}/0"
        env = {**unset, "BFF_REDIS_URL": redis_url, "BFF_PORT": str(port), "TMPDIR": str(tmp_path)}
        with Child(python("cli.main", "dev"), tmp_path / "dev.log", env=env) as dev:
            dev.wait_for_log("Ctrl-C ends everything", 30)
            done = subprocess.run(
                python("cli.main", "chat", "assistant", "Hello"),
                cwd=ROOT,
                env={**os.environ, "BFF_URL": f"http://127.0.0.1:{port}"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert dev.terminate() == 0
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in dev.log
        assert "secret" not in dev.log.replace("BFF_SECRET", "")
        refused = admin.execute_command("ACL", "LOG")
        assert not refused, refused
