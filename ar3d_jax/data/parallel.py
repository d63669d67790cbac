"""Work on many objects in several processes, with a progress bar."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_objects(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, processes: int, title: str
) -> list[Result]:
    """The results of `work` on each job, in order; `work` is a module's function."""
    if processes == 1:
        return [work(job) for job in tqdm(jobs, title, unit="object")]
    # Not forked: a caller may have threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        results = pool.map(work, jobs, chunksize=4)
        return list(tqdm(results, title, total=len(jobs), unit="object"))
