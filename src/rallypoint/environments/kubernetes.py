"""Kubernetes: a node of the run is a pod of an Indexed Job, or of a JobSet.

A pod gets its index, and by kubelet's /etc/hosts its own name and its Service. How many pods there
are and the Job's uid are not told to it, so the errors show the lines that tell it.

Sources: kubernetes.io, "Job", completion mode Indexed; "Pod's hostname and subdomain fields";
jobset.sigs.k8s.io, labels and annotations.
"""

from __future__ import annotations

import re
from typing import Final

from rallypoint.environments.found import (
    BadVariablesError,
    Environ,
    Files,
    Found,
    Problem,
    Variables,
    broken,
    shown,
)
from rallypoint.environments.places import Place, endpoint, of_index

NAME: Final = "Kubernetes"
_INDEX: Final = "JOB_COMPLETION_INDEX"
_HOSTS: Final = "/etc/hosts"
_COUNT_LINES: Final = '- {name: RALLYPOINT_NNODES, value: "4"}  # spec.completions, or MIN:MAX'
_UID: Final = (
    "  valueFrom: {fieldRef: {fieldPath: "
    "\"metadata.labels['batch.kubernetes.io/controller-uid']\"}}"
)
_UID_LINES: Final = f"- name: RALLYPOINT_RUN_ID\n{_UID}"
_JOBSET_LINES: Final = (
    f"- name: JOB_UID\n{_UID}\n"
    "- name: RESTART_ATTEMPT\n"
    "  valueFrom: {fieldRef: {fieldPath: "
    "\"metadata.annotations['jobset.sigs.k8s.io/restart-attempt']\"}}\n"
    '- {name: RALLYPOINT_RUN_ID, value: "$(JOB_UID)-$(RESTART_ATTEMPT)"}'
)
_SERVICE_LINES: Final = (
    "a Service with `clusterIP: None` and `publishNotReadyAddresses: true` that selects the pods, "
    "and its name as `subdomain:` in the pod's spec"
)


def detect(environ: Environ, files: Files) -> Found | None:
    """What Kubernetes says to a pod of an Indexed Job; None elsewhere."""
    variables = Variables(NAME, environ)
    if not variables.text(_INDEX):
        return None
    try:
        return _pod(variables, files)
    except BadVariablesError as error:
        return broken(NAME, str(error))


def _pod(variables: Variables, files: Files) -> Found:
    index = variables.number(_INDEX) or 0
    source = "HOSTNAME" if variables.text("HOSTNAME") else "/etc/hostname"
    name = variables.text("HOSTNAME") or (files("/etc/hostname") or "").strip()
    host = name.partition(".")[0]
    values = of_index(variables, index, _INDEX)
    lines = _lines(variables, host)
    problems = {
        "nnodes": _untold("how many pods there are", index, lines),
        "run_id": _untold("the Job's uid", index, lines),
    }
    if host:
        values["node_name"] = variables.value(host, source)
    first = _first_pod(host, index, files(_HOSTS) or "")
    if first:
        values["endpoint"] = endpoint(variables, [Place(first, f"{_INDEX}, {_HOSTS}")])
    else:
        problems["endpoint"] = Problem(
            f"{_INDEX}={index}: pod 0 has no name that the others can look up: this pod's {_HOSTS} "
            f"({shown(host) or 'without a host name'}) shows no subdomain",
            f"give the Job {_SERVICE_LINES}; or give --endpoint (RALLYPOINT_ENDPOINT)",
            NAME,
        )
    return Found(launcher=NAME, values=values, problems=problems)


def _first_pod(host: str, index: int, hosts: str) -> str:
    """The full name of pod 0, made from this pod's own; "" if it is not known."""
    job = host.removesuffix(f"-{index}")
    if not host or job == host:
        return ""
    for line in hosts.splitlines():
        names = line.partition("#")[0].split()[1:]
        full = next((each for each in names if each.startswith(f"{host}.")), "")
        if full:
            return f"{job}-0{full[len(host) :]}"
    return ""


def _untold(what: str, index: int, lines: str) -> Problem:
    return Problem(
        f"{_INDEX}={index}: this is one pod of an Indexed Job, and Kubernetes does not tell a pod "
        f"{what}",
        f"give --nnodes and --run-id, or add this to the container's `env`:\n{lines}",
        NAME,
    )


def _lines(variables: Variables, host: str) -> str:
    """All lines that are missing, so that one correction is enough."""
    # A JobSet's pods are named JOBSET-JOB-REPLICA-INDEX, and it counts its restarts.
    is_jobset = re.fullmatch(r".+-[0-9]+-[0-9]+", host) is not None
    lines = {
        "RALLYPOINT_NNODES": _COUNT_LINES,
        "RALLYPOINT_RUN_ID": _JOBSET_LINES if is_jobset else _UID_LINES,
    }
    return "\n".join(text for name, text in lines.items() if not variables.text(name))
