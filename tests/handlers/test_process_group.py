"""Processes that torchrun starts within a Slurm job."""

import ignite.distributed as idist
import pytest
import torch.distributed as dist

from medsr_monai.handlers import join_process_group


@pytest.mark.parametrize("srun", [True, False], ids=["srun torchrun", "torchrun in the batch script"])
def test_ignite_knows_the_process_by_torchruns_number(monkeypatch, srun):
    """srun numbers its tasks, each of them a torchrun with several processes."""
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 3}
    for name, value in (variables | {"SLURM_JOB_ID": 7, "SLURM_LOCALID": 0}).items():
        monkeypatch.setenv(name, str(value))
    if not srun:
        monkeypatch.delenv("SLURM_LOCALID")
    join_process_group("gloo")
    try:
        assert (idist.get_local_rank(), idist.get_rank(), idist.get_world_size()) == (3, 0, 1)
    finally:
        dist.destroy_process_group()
        idist.sync()
