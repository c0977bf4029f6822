"""scripts/*.sh: each starts a published command with a configuration that is there, by srun as well."""

from __future__ import annotations

import os
import subprocess

import pytest

import main_pretrain
import main_seg
from ovseg.cli.options import parse_with_options
from ovseg.cli.train import train_parser
from tests.tiny_published import REPO

STUBS = {
    "python": 'printf "%s\\n" "$@"',
    "nvidia-smi": "echo 'GPU 0'; echo 'GPU 1'",
    "scontrol": "echo first-node",
    # runs the command on one node: what follows its own options
    "srun": 'echo "${SRUN_CPUS_PER_TASK:-} $*" >&2; while [ "$1" != bash ]; do shift; done; '
    'SLURM_JOB_NODELIST=n SLURM_NNODES=1 SLURM_NODEID=0 exec "$@"',
}


@pytest.fixture
def stubs(tmp_path):
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def run(script, *words, **environment):
    return subprocess.run(
        ["bash", REPO / "scripts" / script, *words], cwd="/", env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ("test_voc12.sh", "test_voc12.yml"),
        ("test_context.sh", "test_voc_context.yml"),
        ("test_coco.sh", "test_coco.yml"),
        ("test_coco_stuff.sh", "test_coco_stuff.yml"),
        ("test_ade20k.sh", "test_ade20k.yml"),
    ],
)
def test_evaluations(stubs, tmp_path, script, config):
    (tmp_path / "my weights.pth").touch()
    for words, weights in (([], "pretrained/ovsegmentor.pth"), ([tmp_path / "my weights.pth"], None)):
        found = run(script, *words, "--vis", "pred", "--opts", "SEED=1", **stubs)
        assert found.returncode == 0, found.stderr
        unbuffered, module, name, *options = found.stdout.splitlines()
        assert (unbuffered, module, name) == ("-u", "-m", "main_seg")
        args = parse_with_options(main_seg.build_parser(), options)
        assert args.cfg == f"configs/{config}" and (REPO / args.cfg).is_file()
        assert args.resume == (weights or str(tmp_path / "my weights.pth")) and args.vis == ["pred"]
        assert args.opts == ["SEED=1"]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("slurm", [False, True])
def test_trainings(stubs, stage, slurm):
    script = f"run{'_slurm' if slurm else ''}{'_stage2' if stage == 2 else ''}.sh"
    own = {"PARTITION": "gpu", "GPUS": "4", "SRUN_OPTIONS": "--time 1:00"} if slurm else {"PORT": "1234"}
    found = run(script, "--tag", "a b", "--opts", "SEED=1", **stubs, **own)
    assert found.returncode == 0, found.stderr
    words = found.stdout.splitlines()
    launcher, options = words[: words.index("main_pretrain.py")], words[words.index("main_pretrain.py") + 1 :]
    assert launcher[launcher.index("--nproc-per-node") + 1] == ("4" if slurm else "2")
    assert launcher[launcher.index("--master-port") + 1] == ("29500" if slurm else "1234")
    args = parse_with_options(main_pretrain.build_parser(), options)
    assert args.cfg.endswith(f"stage{stage}.yml") and (REPO / args.cfg).is_file()
    assert (args.tag, args.opts) == ("a b", ["SEED=1"])
    if slurm:
        assert "--partition gpu" in found.stderr and "--gres gpu:4" in found.stderr and "--time 1:00" in found.stderr
        assert "first-node" in launcher


def test_slurm_needs_a_partition(stubs):
    found = run("run_slurm.sh", **stubs)
    assert found.returncode == 1 and "set PARTITION" in found.stderr


def test_train_net_by_slurm(stubs, tmp_path):
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]"}
    for gpus, number in (({"SLURM_GPUS_ON_NODE": "4"}, 4), ({}, 0)):
        found = run("slurm.sh", "--config-file", "a b.yaml", "SEED", "1", **stubs, **job, **gpus)
        assert found.returncode == 0 and "--ntasks-per-node 1" in found.stderr, found.stderr
        script, *words = found.stdout.splitlines()
        args = parse_with_options(train_parser(), words, bare=True)
        assert script == "train_net.py" and (args.config_file, args.opts) == ("a b.yaml", ["SEED", "1"])
        assert (args.num_machines, args.machine_rank, args.num_gpus) == (1, 0, number)
        assert args.dist_url == "tcp://first-node:23456"
    for cores, shown in ({"SLURM_CPUS_PER_TASK": "12"}, "12 --ntasks"), ({}, " --ntasks"):
        assert run("slurm.sh", **stubs, **job, **cores).stderr.startswith(shown)
