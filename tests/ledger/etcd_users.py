"""An etcd that asks for a name and a password."""

from __future__ import annotations

from tests.ledger.etcd_endpoints import client_of
from tests.ledger.etcd_processes import EtcdCluster


async def require_users(cluster: EtcdCluster) -> None:
    """Root, and a user who may use one prefix."""
    async with client_of(cluster.options) as client:

        async def admin(path: str, **body: object) -> None:
            await client._call(f"auth/{path}", body, object)

        await admin("user/add", name="root", password="root-password")
        await admin("role/add", name="root")
        await admin("user/grant", user="root", role="root")
        await admin("user/add", name="ours", password="our-password")
        await admin("role/add", name="ours")
        permission = {"permType": "READWRITE", "key": b"/ours/", "range_end": b"/ours0"}
        await admin("role/grant", name="ours", perm=permission)
        await admin("user/grant", user="ours", role="ours")
        await admin("enable")
