"""Runs a function in two processes of one machine that share a training, as a launcher such as torchrun would."""

import os
import sys

import torch
from torch import distributed, multiprocessing

PROCESSES = 2


def in_two_processes(function, folder, *arguments):
    """Call function(rank, folder, *arguments) in two processes; an error of one is raised.

    Args:
        function: A function of a module, which may be pickled.
        folder: An empty folder of this call, through which the processes find each other: a port may be taken.
        arguments: More arguments.
    """
    # A forked process need not import torch, which takes longer than a test.
    method = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(_call, args=(function, folder, arguments), nprocs=PROCESSES, start_method=method)


def _call(rank, function, folder, arguments):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=PROCESSES)
    try:
        function(rank, folder, *arguments)
    finally:
        distributed.destroy_process_group()
