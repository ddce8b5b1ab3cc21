"""Processes for tests: real ones, forked from one that has already imported what they need, which takes seconds."""

import multiprocessing
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.callbacks.recorded",
        "tests.callbacks.distributed_script",
        "tests.callbacks.sharded_script",
        "tests.loggers.runs",
        "sklearn.datasets",
        "scipy.stats",
    ]
)


class Process:
    """Runs ``target(pipe, *arguments)``, which may send to and receive from the test over the pipe."""

    def __init__(self, target, *arguments):
        self.pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(target, theirs, *arguments))
        self._process.start()
        theirs.close()

    def ask(self, message=None, timeout=120):
        """Send something, and wait for what it says next."""
        self.pipe.send(message)
        return self.hear(timeout)

    def hear(self, timeout=120):
        assert self.pipe.poll(timeout), "the process is silent"
        return self.pipe.recv()

    def kill(self):
        self._process.kill()
        self._process.join()

    def ended(self, timeout=120):
        """The exit status: 1 after an error, the signal's negative number after a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError("the process does not end")
        return self._process.exitcode

    def finish(self, timeout=120):
        assert self.ended(timeout) == 0

    @property
    def pid(self):
        return self._process.pid


def _run(target, pipe, *arguments):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target(pipe, *arguments)


def start_ranks(target, world_size, *arguments):
    """Run ``target(rank, world_size, *arguments)`` in as many processes, and raise what one of them raised."""
    context = torch.multiprocessing.start_processes(
        _run_rank, (target, world_size, *arguments), nprocs=world_size, join=False, start_method="forkserver"
    )
    while not context.join():
        pass


def folder_of_ranks(folder, target, world_size):
    """The folder, after ``target(rank, world_size, folder)`` in the processes of a gloo group."""
    start_ranks(_in_group, world_size, target, folder)
    return folder


def _in_group(rank, world_size, target, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    target(rank, world_size, folder)
    dist.destroy_process_group()


def _run_rank(rank, target, *arguments):
    torch.set_num_threads(1)
    target(rank, *arguments)
