"""launch/gke.sh: the manifest, and what kubectl is asked."""

import subprocess

import pytest

from tests.launch.stubs import Stubs, bare_path, refused

yaml = pytest.importorskip("yaml")

POD = (
    "--name=mine",
    "--image=registry/ar3d:1",
    "--accelerator=tpu-v5p-slice",
    "--topology=2x4x4",
    "--bucket=box",
)
FLAGS = ("--", "--config.mesh.fsdp=8", '--config.prompts=a "b" \\ c: d')


@pytest.fixture
def cluster(tmp_path):
    return Stubs(tmp_path, "kubectl")


def manifest(cluster, *arguments):
    result = cluster.run("gke.sh", "run", "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    assert cluster.calls == []
    return yaml.safe_load(result.stdout)


def job(document):
    (replicated,) = document["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(document):
    return job(document)["template"]["spec"]


def test_manifest(cluster):
    document = manifest(cluster, *POD, "--slices=2", "--retries=3", *FLAGS)
    assert (document["apiVersion"], document["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert document["metadata"]["name"] == "mine"
    assert document["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert job(document)["parallelism"] == job(document)["completions"] == 8
    assert pod(document)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
    }
    (container,) = pod(document)["containers"]
    assert container["image"] == "registry/ar3d:1"
    assert container["args"] == [
        "python",
        "-m",
        "ar3d_jax.train",
        "--hosts=auto",
        "--config=configs/higrpo.py:7b",
        "--workdir=/mnt/box/mine",
        *FLAGS[1:],
    ]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_a_restart_resumes_and_a_mistake_ends_the_run(cluster):
    document = manifest(cluster, *POD, "--retries=3")
    assert document["spec"]["failurePolicy"] == {
        "maxRestarts": 3,
        "rules": [
            {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ],
    }
    assert job(document)["backoffLimit"] == 0
    (rule,) = job(document)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == "train"
    assert pod(document)["restartPolicy"] == "Never"  # a podFailurePolicy asks for it


@pytest.mark.parametrize(
    ("trainer", "told", "status"),
    [
        ("exit 0", False, 0),
        ("exit 2", False, 2),
        ("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", True, 75),
        ("trap 'exit 2' TERM; echo up; while :; do sleep 0.01; done", True, 2),
        ("echo up; exec sleep 60", True, 143),
    ],
)
def test_a_pod_that_is_told_to_end_is_not_finished(cluster, trainer, told, status):
    (container,) = pod(manifest(cluster, *POD))["containers"]
    command = [*container["command"], "sh", "-c", trainer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if told:
            assert process.stdout.readline() == "up\n"
            process.terminate()
        assert process.wait(timeout=30) == status


def test_the_bucket_is_where_the_workdir_is(cluster):
    document = manifest(cluster, *POD, "--workdir=/mnt/box/a/b")
    (container,) = pod(document)["containers"]
    (volume,) = pod(document)["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": "/mnt/box"}
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "box"
    annotations = job(document)["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}
    assert "--workdir=/mnt/box/a/b" in container["args"]


@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts"),
    [
        ("tpu-v5-lite-podslice", "2x4", 2),
        ("tpu-v6e-slice", "16x16", 64),
        ("tpu-v5p-slice", "2x2x1", 1),
        ("tpu-v5p-slice", "4x4x4", 16),
    ],
)
def test_hosts_follow_from_the_topology(cluster, accelerator, topology, hosts):
    where = (f"--accelerator={accelerator}", f"--topology={topology}")
    assert job(manifest(cluster, *POD, *where))["parallelism"] == hosts


def test_run_applies_the_printed_manifest(cluster):
    result = cluster.run("gke.sh", "run", *POD, *FLAGS)
    assert result.returncode == 0, result.stderr
    assert [call[1] for call in cluster.calls] == ["get", "apply"]
    assert cluster.calls[1] == ["kubectl", "apply", "-f", "-"]
    applied = yaml.safe_load((cluster.folder / "stdin").read_text())
    (cluster.folder / "log").unlink()
    assert applied == manifest(cluster, *POD, *FLAGS)
    assert "8 hosts; follow them" in result.stderr


def test_a_jobset_that_is_there_stays(cluster):
    cluster.answer("get jobset", "jobset.jobset.x-k8s.io/mine")
    assert "there is a JobSet mine already" in refused(
        cluster.run("gke.sh", "run", *POD)
    )
    assert len(cluster.calls) == 1


def test_logs_and_delete(cluster):
    for verb in ("logs", "delete"):
        dry = cluster.run("gke.sh", verb, "--name=mine", "--dry-run")
        assert cluster.calls == []
        assert cluster.run("gke.sh", verb, "--name=mine").returncode == 0
        (call,) = cluster.calls
        assert dry.stdout.split() == call
        (cluster.folder / "log").unlink()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--topology=4x4"], "--topology=4x4: expected 3 numbers for tpu-v5p-slice"),
        (["--topology=1x1x2"], "has 2 chips; expected a multiple of the 4"),
        (["--topology=2x0x4"], "--topology=2x0x4: expected 3 numbers"),
        (["--accelerator=tpu-v6e-slice"], "expected 2 numbers for tpu-v6e-slice"),
        (["--accelerator=gpu"], "--accelerator=gpu: expected tpu-v5-lite-podslice"),
        (["--image="], "--image=: expected a container image"),
        (["--bucket="], "--bucket=: expected the name of a Cloud Storage bucket"),
        (["--workdir=/mnt/other"], "outside of the bucket; expected /mnt/box/"),
        (["--slices=0"], "--slices=0: expected a number"),
        (["--retries=-1"], "--retries=-1: expected a number"),
        (["--name=My"], "--name=My: expected lower case"),
        (["--gpus=8"], "--gpus=8: no such option"),
        (["delete"], "delete: expected one of"),
        (["--", "a\nb"], "expected one line"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(cluster, arguments, expected):
    assert expected in refused(cluster.run("gke.sh", "run", *POD, *arguments))
    assert cluster.calls == []


def test_no_kubectl_is_one_line_and_exit_2(cluster, tmp_path):
    error = refused(
        cluster.run("gke.sh", "delete", "--name=mine", PATH=bare_path(tmp_path))
    )
    assert error.startswith("error: no kubectl here: install it")


def test_a_kubectl_that_may_not_run_is_named(cluster, tmp_path):
    path = bare_path(tmp_path)
    program = tmp_path / "bare" / "kubectl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    error = refused(cluster.run("gke.sh", "delete", "--name=mine", PATH=path))
    assert error.startswith(f"error: {program} may not be run: chmod +x it, or install")
    assert error.endswith("get-credentials), and start again\n")
