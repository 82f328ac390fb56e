"""Runs a study on several processes; what comes of it does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace

from wisp.errors import ConfigError
from wisp.sim.capacity import search
from wisp.sim.parts import simulate_apart
from wisp.sim.processes import processes
from wisp.sim.study.fingerprint import fingerprint
from wisp.sim.study.model import AT_CAPACITY, Figures, Point, PointId, Study, Task, figures, of_capacity, of_fleet
from wisp.sim.study.store import PointStore

Points = dict[PointId, Point]


def run_study(
    study: Study, store: PointStore | None, workers: int = 1, told: Callable[[Point], None] = lambda point: None
) -> Points:
    """Every point of a study, those in the store as they are there (None: nothing is kept); `told` hears of each.

    Raises ConfigError.
    """
    if workers < 1:
        raise ConfigError(f"a study needs at least 1 worker, not {workers}")
    points: Points = {}
    to_run: list[Task] = []
    for task in study.tasks():
        point = None if store is None else store.find(fingerprint(task))
        if point is None:
            to_run.append(task)
            continue
        # The same settings may have been measured under the name of another study's cell.
        points[task.id] = replace(point, cell=task.cell.name, system=task.system_name)
        told(points[task.id])
    for task, point in _run(to_run, points, workers):
        if store is not None:
            store.add(fingerprint(task), point)
        told(point)
    return {task.id: points[task.id] for task in study.tasks()}


def measure(task: Task, start: int) -> Point:
    """Run one point's simulations; a search starts from so many devices."""
    scenario, wanted = task.cell.scenario, task.measure
    capacity, runs = None, dict[str, Figures]()
    if wanted.searches:
        served = search(scenario, task.system, task.seed, wanted.level, start)
        capacity = served.num_devices
        if served.report is not None:
            runs[AT_CAPACITY] = figures(served.report, capacity)
        for load in wanted.of_capacity:
            runs[of_capacity(load)] = _run_load(task, load * capacity)
    for load in wanted.of_fleet:
        runs[of_fleet(load)] = _run_load(task, load * scenario.num_devices)
    return Point(task.cell.name, task.system_name, task.seed, capacity, runs)


def _run_load(task: Task, load: float) -> Figures:
    num_devices = max(round(load), 1)
    scenario = replace(task.cell.scenario, num_devices=num_devices)
    return figures(simulate_apart(scenario, task.system, task.seed), num_devices)


def _run(tasks: list[Task], points: Points, workers: int) -> Iterator[tuple[Task, Point]]:
    """Each task once the point that it starts from is there; `points` grows."""
    if workers == 1:
        for task in tasks:
            points[task.id] = measure(task, _start(task, points))
            yield task, points[task.id]
        return
    with processes(workers) as pool:
        yield from _run_in(pool, tasks, points, workers)


def _run_in(pool: Executor, tasks: list[Task], points: Points, workers: int) -> Iterator[tuple[Task, Point]]:
    waiting, running = list(tasks), dict[Future[Point], Task]()
    while waiting or running:
        ready = [task for task in waiting if task.after is None or task.after in points]
        for task in ready[: workers - len(running)]:
            waiting.remove(task)
            running[pool.submit(measure, task, _start(task, points))] = task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda one: running[one].id):
            task = running.pop(future)
            points[task.id] = future.result()
            yield task, points[task.id]


def _start(task: Task, points: Points) -> int:
    before = None if task.after is None else points[task.after].capacity
    return before or task.cell.scenario.num_devices
