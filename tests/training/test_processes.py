"""The processes of a run find each other, and each its device, under torchrun and SLURM."""

import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.collective import processes
from eosin.core.errors import EosinError
from eosin.training.processes import _first_host, adopt_slurm, choose_device, process_group
from forked import Forked

SCRIPT = Path(__file__).with_name("slurm_process.py")
GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STEP = {
    "SLURM_JOB_ID": "4000123",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_JOB_NODELIST": "login1,gpu[003-004]",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def without_launchers():
    return {name: value for name, value in os.environ.items() if name not in GIVEN and not name.startswith("SLURM_")}


@pytest.fixture
def environment(monkeypatch):
    """Nothing of torchrun or SLURM is set; what is set is forgotten after the test."""
    monkeypatch.setattr(os, "environ", without_launchers())
    return os.environ


@pytest.fixture
def two_gpus(monkeypatch, environment):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


class TestDevice:
    @pytest.mark.parametrize("name", [None, "cuda"])
    @pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, STEP | {"SLURM_LOCALID": "1"}])
    def test_each_process_of_a_host_gets_its_own_gpu(self, two_gpus, name, variables):
        os.environ.update(variables)
        assert choose_device(name) == torch.device("cuda", 1)
        os.environ["LOCAL_RANK"] = "2"
        with pytest.raises(EosinError, match=r"device 'cuda:2': 2 CUDA devices are visible here"):
            choose_device(name)

    @pytest.mark.parametrize("variable", ["SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"])
    def test_a_gpu_that_slurm_bound_to_the_task_is_the_first_it_sees(self, two_gpus, monkeypatch, variable):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        os.environ.update(STEP)
        with pytest.raises(EosinError, match=r"device 'cuda:3': 1 CUDA devices are visible"):
            choose_device("cuda")
        os.environ[variable] = "1"
        assert choose_device("cuda") == torch.device("cuda", 0)

    def test_a_named_gpu_must_be_there(self, two_gpus):
        assert choose_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(EosinError, match=r"device 'cuda:9': 2 CUDA devices are visible here"):
            choose_device("cuda:9")

    @pytest.mark.parametrize(("name", "message"), [("gpu", "is not known"), ("mps", "is not supported")])
    def test_other_devices_are_refused(self, name, message):
        with pytest.raises(EosinError, match=rf"device '{name}' {message}; use cpu, cuda or cuda:N"):
            choose_device(name)

    def test_without_a_gpu_it_is_the_cpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert choose_device(None) == torch.device("cpu")


class TestSlurm:
    def test_a_step_of_several_tasks_is_adopted(self, environment):
        environment.update(STEP)
        adopt_slurm()
        assert {name: environment[name] for name in GIVEN} == {
            "RANK": "11",
            "WORLD_SIZE": "16",
            "LOCAL_RANK": "3",
            "MASTER_ADDR": "gpu003",
            "MASTER_PORT": "20123",
        }

    def test_an_address_that_is_set_is_kept(self, environment):
        environment.update(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29999"})
        adopt_slurm()
        assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29999")

    @pytest.mark.parametrize(
        "difference",
        [
            pytest.param({"SLURM_STEP_ID": None, "SLURM_STEP_NUM_TASKS": None, "SLURM_PROCID": "0"}, id="batch script"),
            pytest.param({"SLURM_STEP_ID": "batch", "SLURM_PROCID": "0"}, id="batch step by name"),
            pytest.param({"SLURM_STEP_ID": str(0xFFFFFFFB), "SLURM_PROCID": "0"}, id="batch step by number"),
            pytest.param({"SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_PROCID": "0"}, id="interactive shell"),
            pytest.param({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, id="a step of one task in a larger job"),
            pytest.param({"SLURM_PROCID": None}, id="salloc"),
            pytest.param({"RANK": "5", "WORLD_SIZE": "8"}, id="torchrun in a step"),
        ],
    )
    def test_other_processes_of_a_job_are_left_alone(self, environment, difference):
        environment.update({name: value for name, value in (STEP | difference).items() if value is not None})
        for name in difference:
            if difference[name] is None:
                environment.pop(name, None)
        before = dict(environment)
        adopt_slurm()
        assert environment == before

    def test_a_batch_script_is_one_process(self, environment):
        environment.update({name: value for name, value in STEP.items() if "STEP" not in name})
        with process_group(choose_device("cpu")):
            assert processes() == 1

    def test_hosts_that_are_not_known_are_asked_for(self, environment):
        environment.update({name: value for name, value in STEP.items() if "NODELIST" not in name})
        with pytest.raises(EosinError, match=r"SLURM_STEP_NODELIST is not set.*set MASTER_ADDR"):
            adopt_slurm()

    def test_two_tasks_join(self, tmp_path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        step = STEP | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
        # The port follows from the job's number, in a range that the probe need not hit.
        step |= {"SLURM_JOB_ID": str(port - 20000)} if 20000 <= port < 40000 else {"MASTER_PORT": str(port)}
        tasks = [
            Forked(
                *(SCRIPT, tmp_path / f"{rank}.pt"),
                env=without_launchers() | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            )
            for rank in range(2)
        ]
        said = [task.finish() for task in tasks]
        assert [task.returncode for task in tasks] == [0, 0], said
        for rank in range(2):
            assert torch.load(tmp_path / f"{rank}.pt") == (rank, 2, torch.tensor([3.0]))


NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NUMBERS = st.tuples(st.integers(0, 999), st.integers(0, 50), st.integers(1, 4))


class TestHostLists:
    @pytest.mark.parametrize(
        ("hosts", "first"),
        [
            ("node7", "node7"),
            ("node7,node9", "node7"),
            ("node[003-010,12]", "node003"),
            ("node[003-010,12],gpu1", "node003"),
            ("node[5,7-9]", "node5"),
            ("r[1-2]n[08-16]", "r1n08"),
            ("node[1-2]-ib.cluster,other", "node1-ib.cluster"),
            ("gpu-a-[01-04]", "gpu-a-01"),
        ],
    )
    def test_examples(self, hosts, first):
        assert _first_host(hosts) == first

    @given(NAME, st.lists(NUMBERS, min_size=1, max_size=3), NAME, st.lists(NAME, max_size=2))
    def test_the_first_of_the_first_range_in_its_own_width(self, prefix, ranges, suffix, others):
        texts = [f"{low:0{width}d}" + (f"-{low + more:0{width}d}" if more else "") for low, more, width in ranges]
        low, _, width = ranges[0]
        hosts = ",".join([f"{prefix}[{','.join(texts)}]{suffix}", *others])
        assert _first_host(hosts) == f"{prefix}{low:0{width}d}{suffix}"

    @given(st.lists(NAME, min_size=1, max_size=4))
    def test_a_list_without_ranges(self, names):
        assert _first_host(",".join(names)) == names[0]
