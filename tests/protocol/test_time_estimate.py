import io

import pytest
from dtrap.protocol.progress import EpisodeProgress
from dtrap.protocol.time_estimate import TimeEstimate, about
from rich.console import Console


def simulated(clock, methods, tasks, *, decode=1.0, test=4.0, batches=4, unit="episode", together=1, hint="", rows=()):
    """Run tasks on the clock as a run does; return the true seconds and each line that is said, with its time."""
    console = Console(file=io.StringIO(), width=20)
    progress = EpisodeProgress(tasks, list(methods), unit=unit, console=console, clock=clock, rows=rows)
    done = {(row["method"], row["episode"]) for row in rows}
    missing = {name: [e for e in range(tasks) if (name, e) not in done] for name in methods}
    progress.estimate = TimeEstimate({name: len(left) for name, left in missing.items()}, unit, clock=clock, hint=hint)
    said, began = [], clock.now

    def look():
        lines = [line for line in console.file.getvalue().splitlines() if "takes" in line]
        said.extend((clock.now - began, line) for line in lines[len(said) :])

    with progress:
        for first in range(0, tasks, together):
            for name, (steps, step, first_step) in methods.items():
                group = [e for e in range(first, min(first + together, tasks)) if e in missing[name]]
                if not group:
                    continue
                progress.begin(group[0], len(group), name)
                clock.now += decode
                for _ in group:
                    for batch in range(1, batches + 1):
                        clock.now += test / batches
                        progress.test(batch, batches)
                for _ in group:
                    progress.resume(0.0)
                for number in range(steps):
                    clock.now += step + (first_step if number == 0 else 0)
                    for _ in group:
                        progress.advance(1 / steps)
                    look()
                for episode in group:
                    for batch in range(1, batches + 1):
                        clock.now += test / batches
                        progress.test(batch, batches)
                    progress.finish({"method": name, "episode": episode, "accuracy": 50.0, "seconds": 1.0})
                    look()
    return clock.now - began, said


def minutes(line):
    return float(line.split("about ")[1].split(" minutes")[0])


def test_one_task_is_announced_in_its_first_steps_and_the_time_is_right(clock):
    seconds, said = simulated(clock, {"svl-ra": (250, 3.3, 2.0)}, 1, unit="task")
    ((when, line),) = said
    assert when < 15
    assert minutes(line) == round(seconds / 60) == 14
    assert line == "This takes about 14 minutes: 250 steps of 3.3 s."


@pytest.mark.parametrize(("step", "first_step"), [(0.002, 30.0), (0.08, 0.0), (45.0, 0.0)])
def test_encoding_the_images_once_is_not_taken_for_a_step(clock, step, first_step):
    seconds, said = simulated(clock, {"head": (1250, step, first_step)}, 6, decode=2.0, test=3.0)
    ((when, line),) = said
    text = line.split("about ")[1]
    assert text.startswith(about(seconds).split(" ")[0])
    assert when < max(60, seconds / 50)
    assert "6 episodes, each 1,250 steps of " in line


def test_a_run_within_a_minute_is_not_announced(clock):
    seconds, said = simulated(clock, {"head": (1250, 0.002, 30.0)}, 1)
    assert 40 < seconds < 60
    assert said == []


def test_a_method_that_is_not_timed_yet_is_named_and_not_guessed(clock):
    seconds, said = simulated(clock, {"lora": (100, 1.0, 0.0), "coop": (100, 5.0, 0.0)}, 3)
    (_, first), (when, second) = said
    assert first == "'lora' takes about 5 minutes: 3 episodes, each 100 steps of 1 s; 'coop' is timed when it starts."
    assert when < 3 * 100
    assert minutes(second) == pytest.approx(seconds / 60, abs=1)


def test_what_is_finished_already_is_not_counted(clock):
    rows = [{"method": "svl-ra", "episode": episode, "accuracy": 50.0, "seconds": 100.0} for episode in range(7)]
    seconds, said = simulated(clock, {"svl-ra": (100, 1.0, 0.0)}, 10, rows=rows)
    assert len(said) == 1
    assert minutes(said[0][1]) == round(seconds / 60) == 5


def test_episodes_side_by_side_share_their_steps(clock):
    seconds, said = simulated(clock, {"svl-ra": (200, 1.0, 0.0)}, 16, together=4, test=2.0)
    ((_, line),) = said
    assert minutes(line) == pytest.approx(seconds / 60, rel=0.1)


def test_a_method_without_steps_is_announced_after_its_first_task(clock):
    estimate = TimeEstimate({"tip-adapter": 10}, clock=clock)
    estimate.begin("tip-adapter")
    assert estimate.finished({"method": "tip-adapter", "seconds": 30.0}) == "This takes about 5 minutes."
    assert estimate.finished({"method": "tip-adapter", "seconds": 90.0}) is None


def test_tasks_of_workers_run_at_the_same_time(clock):
    estimate = TimeEstimate({"svl-ra": 12}, workers=4, clock=clock)
    for share in (0.02, 0.06, 0.1):
        found = estimate.looked((0, 1), "svl-ra", share, 1)
        clock.now += 12.0
    # 0.08 of a task in 24 s: 300 s each, 12 of them by 4 workers.
    assert found == "This takes about 15 minutes."


def test_a_resumed_training_counts_what_is_left(clock):
    console = Console(file=io.StringIO(), width=20)
    with EpisodeProgress(1, ["a"], console=console, clock=clock) as progress:
        progress.begin(0)
        progress.resume(0.5)
        clock.now += 10
        progress.advance(0.25)
        assert progress.remaining_seconds() == pytest.approx(10.0)
    estimate = TimeEstimate({"a": 1}, clock=clock)
    estimate.begin("a")
    estimate.resumed(0.5)
    for _ in range(2):
        clock.now += 10.0
        found = estimate.advanced(0.01)
    assert found == "This takes about 8 minutes: 100 steps of 10 s."


def test_the_first_step_does_not_count_for_the_others_in_the_time_left(clock):
    console = Console(file=io.StringIO(), width=20)
    with EpisodeProgress(1, ["a"], console=console, clock=clock) as progress:
        progress.begin(0)
        clock.now += 30
        progress.advance(0.001)
        assert progress.remaining_seconds() is None
        clock.now += 0.01
        progress.advance(0.001)
        assert progress.remaining_seconds() == pytest.approx(9.98)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(62, "a minute"), (100, "2 minutes"), (3500, "58 minutes"), (3600, "1 hour"), (7700, "2 hours 10 minutes"),
     (14300, "4 hours"), (60000, "17 hours"), (200000, "3 days")],
)  # fmt: skip
def test_times_are_written_as_one_says_them(seconds, text):
    assert about(seconds) == text
