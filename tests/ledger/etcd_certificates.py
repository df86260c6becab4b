"""Certificates for an etcd with TLS on loopback. Tests skip if there is no openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificates(folder: Path) -> None:
    """A CA, and certificates from it for 127.0.0.1 (the server and its gateway) and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    subject = ["-subj", "/CN=rallypoint tests", "-days", "2", "-nodes", "-newkey"]
    curve = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    for name in ("ca", "other-ca"):
        _openssl(
            folder, "req", "-x509", *subject, *curve, "-keyout", f"{name}.key", "-out",
            f"{name}.pem", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    for name in ("server", "client"):
        _openssl(
            folder, "req", "-new", *subject[:2], *subject[4:], *curve, "-keyout", f"{name}.key",
            "-out", f"{name}.csr",
        )  # fmt: skip
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem",
        )  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
