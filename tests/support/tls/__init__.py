"""A self-signed certificate for 127.0.0.1 and localhost, for tests alone. Its key is no secret.

Made by: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost
-addext subjectAltName=IP:127.0.0.1,DNS:localhost -days 36500
"""

from __future__ import annotations

from pathlib import Path

CERTIFICATE = Path(__file__).with_name("certificate.pem")
CERTIFICATE_KEY = Path(__file__).with_name("key.pem")
