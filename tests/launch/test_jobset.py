"""launch/jobset.yaml and jobset_tpu.yaml against the published schemas, and what the schemas do not say."""

import json
import pathlib
import re

import pytest
import yaml

from unimix_jax import errors
from unimix_jax.config import parse

HERE = pathlib.Path(__file__).resolve().parent
FILES = {name: HERE.parents[1] / "launch" / f"{name}.yaml" for name in ("jobset", "jobset_tpu")}
SCHEMA = json.loads((HERE / "jobset_schema.json").read_text())
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "number": (int, float)}


def faults(value, schema, where=""):
    """Yield what is wrong with a value by the keywords of JSON Schema that the file has."""
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    is_type = [isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in types]
    if types and not any(is_type):
        yield f"{where} is no {' or '.join(types)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}"
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from faults(item, schema["items"], f"{where}[{i}]")
    if isinstance(value, dict):
        yield from (f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in known:
                yield from faults(item, known[name], f"{where}.{name}")
            elif others is False:
                yield f"{where}.{name} is unknown"
            elif others is not True:
                yield from faults(item, others, f"{where}.{name}")


@pytest.fixture(params=FILES)
def jobset(request):
    return yaml.safe_load(FILES[request.param].read_text())


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(jobset):
    pod = job_of(jobset)["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_the_files_are_what_the_schemas_say(jobset):
    assert list(faults(jobset, SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda jobset: jobset["spec"].update(failurePolicies={}), ".spec.failurePolicies is unknown"),
        (lambda jobset: job_of(jobset).update(completions="2"), "completions is no integer"),
        (lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0].update(action="Fail"), "action is 'Fail'"),
        (lambda jobset: job_of(jobset)["podFailurePolicy"].pop("rules"), "podFailurePolicy.rules is missing"),
        (lambda jobset: pod_of(jobset)[1].update(image=["a"]), "containers[0].image is no string"),
        (lambda jobset: pod_of(jobset)[1].pop("name"), "containers[0].name is missing"),
    ],
)
def test_the_check_sees_mistakes(jobset, change, fault):
    change(jobset)
    (seen,) = faults(jobset, SCHEMA)
    assert fault in seen


def test_the_line_for_kueue_is_right_when_it_is_taken_in():
    for path in FILES.values():
        text, number = re.subn(r"^  # labels:", "  labels:", path.read_text(), flags=re.M)
        assert number == 1
        jobset = yaml.safe_load(text)
        assert list(jobset["metadata"]["labels"]) == ["kueue.x-k8s.io/queue-name"]
        assert list(faults(jobset, SCHEMA)) == []


def test_the_rules_follow_the_exit_codes_of_training(jobset):
    rules = job_of(jobset)["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"]
        for rule in rules
        if "onExitCodes" in rule and rule["onExitCodes"]["operator"] == "In"
        for code in rule["onExitCodes"]["values"]
    }
    assert by_code == {errors.MISTAKE: "FailJob", errors.NON_FINITE: "FailJob", errors.INTERRUPTED: "Ignore"}
    assert rules[-1] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # A job that failed by a rule stays failed; any other failure starts all hosts again.
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_the_api_server_s_own_conditions_hold(jobset):
    job, (pod, container) = job_of(jobset), pod_of(jobset)
    assert pod["restartPolicy"] == "Never"  # a pod failure policy takes no other
    assert job["podReplacementPolicy"] == "Failed"  # likewise
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]  # JAX takes the one, Kubernetes counts the other
    for rule in job["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["values"] == sorted(set(rule["onExitCodes"]["values"]))
            assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_hosts_with_gpus_find_each_other():
    jobset = yaml.safe_load(FILES["jobset"].read_text())
    _, container = pod_of(jobset)
    variables = {entry["name"]: entry for entry in container["env"]}
    name, (replicated,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    host, port = variables["UNIMIX_COORDINATOR"]["value"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"  # the first pod of the first job, in the service's domain
    assert {"containerPort": int(port)} in container["ports"]
    assert variables["UNIMIX_PROCESSES"]["value"] == str(job_of(jobset)["completions"])
    assert "job-completion-index" in variables["UNIMIX_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_the_slice_has_the_chips_of_its_topology():
    jobset = yaml.safe_load(FILES["jobset_tpu"].read_text())
    pod, container = pod_of(jobset)
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"] * job_of(jobset)["completions"]
    assert chips == int(sides[0]) * int(sides[1])


def test_training_takes_the_arguments(jobset):
    _, container = pod_of(jobset)
    assert parse(["main", *container["args"]]).workdir == "/runs/imagenet_lt"
