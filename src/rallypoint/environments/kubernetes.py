"""Kubernetes: a node of the run is a pod of an Indexed Job, or of a JobSet.

A pod gets its index, and by kubelet's /etc/hosts its own name and its Service. How many pods there
are and the Job's uid are not told to it, so the errors show the lines that tell it.

A JobSet has several Jobs (`replicas`), and each of them has a pod 0. Their pods are one run if they
are of one entry of its replicatedJobs. So a pod must know the number of its Job, the JobSet's uid
and how often the JobSet was started again. A number among the pods of all entries is not used: the
name of another entry's pod 0 is not known.

Sources: kubernetes.io, "Job", completion mode Indexed; "Pod's hostname and subdomain fields";
kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go, pkg/constants/constants.go,
GenJobName of pkg/util/placement.
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
    Value,
    Variables,
    broken,
    shown,
)
from rallypoint.environments.places import Place, endpoint, of_index

NAME: Final = "Kubernetes"
_INDEX: Final = "JOB_COMPLETION_INDEX"
_HOSTS: Final = "/etc/hosts"
_UID: Final = "JOBSET_UID"
_JOB_INDEX: Final = "JOBSET_JOB_INDEX"
_ATTEMPT: Final = "JOBSET_RESTART_ATTEMPT"
_COUNT_LINES: Final = '- {name: RALLYPOINT_NNODES, value: "4"}  # spec.completions, or MIN:MAX'
_SET_COUNT_LINES: Final = (
    '- {name: RALLYPOINT_NNODES, value: "4"}  # replicas * completions, or MIN:MAX'
)
_UID_LINES: Final = (
    "- name: RALLYPOINT_RUN_ID\n"
    "  valueFrom: {fieldRef: {fieldPath: "
    "\"metadata.labels['batch.kubernetes.io/controller-uid']\"}}"
)
_OF_JOBSET: Final = {
    _UID: "jobset-uid",
    _JOB_INDEX: "job-index",
    _ATTEMPT: "restart-attempt",
}
"""The variables of a JobSet's pod, with the annotations of the pod that they must have."""
_JOBS_PODS: Final = 100_000
"""More pods than a Job has. Source: validation of Jobs in Kubernetes, maxParallelism 100,000 of
Indexed Jobs."""
_JOBS_MAX: Final = 9_999
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
        return broken(NAME, error)


def _pod(variables: Variables, files: Files) -> Found:
    index = variables.number(_INDEX, most=_JOBS_PODS - 1) or 0
    source = "HOSTNAME" if variables.text("HOSTNAME") else "/etc/hostname"
    name = variables.text("HOSTNAME") or (files("/etc/hostname") or "").strip()
    host = name.partition(".")[0]
    job = host.removesuffix(f"-{index}") if host != f"-{index}" else ""
    job = "" if job == host else job
    domain = _domain(host, files(_HOSTS) or "")
    number = variables.number(_JOB_INDEX, most=_JOBS_MAX)
    lines = _lines(variables, may_be_set=number is not None or _may_be_of_a_set(job, domain))
    if number is None:
        values, problems = _of_job(variables, index, lines)
        if _may_be_of_a_set(job, domain) and not variables.has(_JOB_INDEX):
            problems |= _which_job(variables, job, lines)
    else:
        values, problems = _of_set(variables, index, number, job, lines)
        job = f"{job.removesuffix(f'-{number}')}-0" if job else ""
    if host:
        values["node_name"] = variables.value(host, source)
    if job and domain:
        names = [_INDEX, *([_JOB_INDEX] if number is not None else []), _HOSTS]
        values["endpoint"] = endpoint(variables, [Place(f"{job}-0.{domain}", ", ".join(names))])
    else:
        problems["endpoint"] = Problem(
            f"{_INDEX}={index}: pod 0 has no name that the others can look up: this pod's {_HOSTS} "
            f"({shown(host) or 'without a host name'}) shows no subdomain",
            f"give the Job {_SERVICE_LINES}; or give --endpoint (RALLYPOINT_ENDPOINT)",
            NAME,
        )
    without = {each: value for each, value in values.items() if each not in problems}
    return Found(launcher=NAME, values=without, problems=problems)


def _domain(host: str, hosts: str) -> str:
    """What follows the host name in this pod's full name; "" if it has no subdomain."""
    for line in hosts.splitlines():
        names = line.partition("#")[0].split()[1:]
        full = next((each for each in names if host and each.startswith(f"{host}.")), "")
        if full:
            return full[len(host) + 1 :]
    return ""


# -- a Job of its own ------------------------------------------------------------------------------


def _of_job(
    variables: Variables, index: int, lines: str
) -> tuple[dict[str, Value], dict[str, Problem]]:
    problems = {
        "nnodes": _untold("how many pods there are", index, lines),
        "run_id": _untold("the Job's uid", index, lines),
    }
    return of_index(variables, index, _INDEX), problems


def _may_be_of_a_set(job: str, domain: str) -> bool:
    """Whether a Job may be one of a JobSet: those are named JOBSET-REPLICATEDJOB-NUMBER.

    A Job with a Service of its own name is none.
    """
    is_named_so = re.fullmatch(r".+-.+-(0|[1-9][0-9]*)", job) is not None
    return is_named_so and domain.partition(".")[0] != job


def _which_job(variables: Variables, job: str, lines: str) -> dict[str, Problem]:
    """Why a pod of Job 3 of a JobSet may not take itself for a pod of a run of that Job alone."""
    number = job.rpartition("-")[2]
    if number == "0":
        # In a JobSet of one Job, which most are. In another one, the pods of the others are
        # refused.
        return {}
    remove = ", and in a JobSet remove RALLYPOINT_RUN_ID, which may differ between its Jobs"
    problem = Problem(
        f"the Job {shown(job)} has the name of number {number} of a JobSet, and Kubernetes does "
        "not tell a pod whether other Jobs have nodes of its run",
        "add this to the container's `env`; a Job outside of a JobSet may have it, too"
        f"{remove if variables.text('RALLYPOINT_RUN_ID') else ''}:\n{lines}",
        NAME,
    )
    return {"node_index": problem}


# -- a JobSet --------------------------------------------------------------------------------------


def _of_set(
    variables: Variables, index: int, number: int, job: str, lines: str
) -> tuple[dict[str, Value], dict[str, Problem]]:
    if job and not job.endswith(f"-{number}"):
        raise BadVariablesError(
            f"{_JOB_INDEX}={number} and the Job's name {shown(job)} contradict each other"
        )
    names = f"{_JOB_INDEX}, {_INDEX}"
    values = of_index(variables, number * _JOBS_PODS + index, names)
    problems = {"nnodes": _untold("how many pods there are", index, lines)}
    uid, attempt = variables.id_part(_UID), variables.number(_ATTEMPT)
    if uid and attempt is not None:
        # Another entry of the JobSet may have a run of its own.
        name = job.removesuffix(f"-{number}")
        text = f"{name}-{uid}-{attempt}" if name else f"{uid}-{attempt}"
        values["run_id"] = variables.value(text, _UID, _ATTEMPT)
    elif variables.has(_UID):
        problems["run_id"] = Problem(
            f"{_UID}={shown(uid)} and {_ATTEMPT}={shown(variables.text(_ATTEMPT))}: both are "
            "needed for the run's id",
            "give --run-id (RALLYPOINT_RUN_ID), another one for each start of the JobSet, if this "
            "JobSet is older than release 0.9, which adds its uid to pods; or correct the "
            f"container's `env`:\n{_set_lines(_UID)}\n{_set_lines(_ATTEMPT)}",
            NAME,
        )
    else:
        problems["run_id"] = _untold("the JobSet's uid", index, lines)
    return values, problems


def _untold(what: str, index: int, lines: str) -> Problem:
    return Problem(
        f"{_INDEX}={index}: this is one pod of an Indexed Job, and Kubernetes does not tell a pod "
        f"{what}",
        f"give --nnodes and --run-id, or add this to the container's `env`:\n{lines}",
        NAME,
    )


def _lines(variables: Variables, *, may_be_set: bool) -> str:
    """All lines that are missing, so that one correction is enough."""
    has_id = bool(variables.text("RALLYPOINT_RUN_ID"))
    lines = []
    if not variables.text("RALLYPOINT_NNODES"):
        lines.append(_SET_COUNT_LINES if may_be_set else _COUNT_LINES)
    if may_be_set and not variables.has(_JOB_INDEX):
        lines += [_set_lines(name) for name in _OF_JOBSET]
    elif may_be_set and variables.text(_JOB_INDEX):
        lines += [_set_lines(name) for name in (_UID, _ATTEMPT) if not has_id]
    elif not has_id:
        lines.append(_UID_LINES)
    return "\n".join(lines)


def _set_lines(name: str) -> str:
    return (
        f"- name: {name}\n"
        "  valueFrom: {fieldRef: {fieldPath: "
        f"\"metadata.annotations['jobset.sigs.k8s.io/{_OF_JOBSET[name]}']\"}}}}}}"
    )
