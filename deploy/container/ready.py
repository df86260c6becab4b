"""Exits with 0 if the coordinator of this container may decide: `ready.py [PORT]`.

It asks /readyz on loopback, by TLS and then without. The certificate is not checked: it is of the
cluster's own authority, nothing secret is sent, and the answer is only a status.
"""

import ssl
import sys
import urllib.error
import urllib.request

PORT = sys.argv[1] if len(sys.argv) > 1 else "29400"
TRUSTS_ANY = ssl.create_default_context()
TRUSTS_ANY.check_hostname = False
TRUSTS_ANY.verify_mode = ssl.CERT_NONE

for scheme in ("https", "http"):
    try:
        url = f"{scheme}://127.0.0.1:{PORT}/readyz"
        # No proxy is between a container and itself, whatever the environment says.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=TRUSTS_ANY)
        )
        with opener.open(url, timeout=2):
            sys.exit(0)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read(500).decode(errors='replace')}")
    except (OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)
sys.exit(1)
