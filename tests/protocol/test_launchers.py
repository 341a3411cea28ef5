"""Episodes under torchrun and srun: several processes are refused, one process and a shell are not."""

import pytest
from dtrap.protocol import launchers

VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS", "ENVIRONMENT", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
)  # fmt: skip
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}  # the others print nothing


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, ("torchrun", 2)),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, ("torchrun", 1)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "tune"}, ("srun", 4)),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "tune"}, ("", 1)),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "interactive"}, ("srun", 2)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, ("", 1)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "tune", "ENVIRONMENT": "BATCH"}, ("", 1)),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, ("mpirun", 3)),
        ({"WORLD_SIZE": "2"}, ("", 1)),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ("a launcher", 2)),
        ({}, ("", 1)),
    ],
)
def test_what_has_started_this_process(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launchers.launched() == expected


def test_episodes_under_a_launcher_are_refused_in_one_sentence(dtrap, words, tmp_path, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    status, _, errors = dtrap(*words, "--protocol.folder", "run")
    assert status == 2
    assert errors == (
        "dtrap: torchrun has started this command 2 times, but episodes are not shared by its processes: start dtrap "
        "fit once, with --protocol.workers 2 to run 2 episodes at a time.\n"
    )
    assert not (tmp_path / "run").exists()
