import io

import pytest
from dtrap.protocol.progress import EpisodeProgress, duration
from rich.console import Console


def plain_console():
    return Console(file=io.StringIO(), width=20)


def lines_of(console):
    return console.file.getvalue().splitlines()


def result(episode, accuracy, method="a", **more):
    return {"episode": episode, "method": method, "accuracy": accuracy, **more}


def test_without_a_terminal_the_first_line_then_one_in_thirty_seconds_then_the_last(clock):
    console = plain_console()
    with EpisodeProgress(100, ["a"], console=console, clock=clock) as progress:
        for episode in range(100):
            progress.begin(episode)
            for _ in range(8):
                clock.now += 0.125
                progress.advance(0.125)
            progress.finish(result(episode, 50.0))
    lines = lines_of(console)
    assert lines[0] == "episode 1/100"
    assert len(lines) == 5
    assert [line.split(" · ")[0] for line in lines[1:4]] == [
        "episode 30/100",
        "episode 60/100",
        "episode 90/100",
    ]
    assert lines[1].endswith(" · 1 min left")
    assert lines[-1] == "episode 100/100 · accuracy 50.0 % in all 100 episodes"


def test_a_long_episode_reports_from_within(clock):
    console = plain_console()
    with EpisodeProgress(2, ["a"], console=console, clock=clock) as progress:
        progress.begin(0)
        clock.now += 60
        progress.advance(0.25)
        assert progress.remaining_seconds() == pytest.approx(60 / 0.25 * 1.75)
    assert lines_of(console) == ["episode 1/2", "episode 1/2 · 7 min left"]


def test_a_long_test_reports_from_within(clock):
    console = plain_console()
    with EpisodeProgress(3, ["a"], unit="seed", console=console, clock=clock) as progress:
        progress.begin(0)
        for batch in range(1, 5):
            clock.now += 20
            progress.test(batch, 4)
        progress.test(1, 4)
        progress.advance(0.1)
        assert "test batch" not in progress.text()
        progress.test(3, 4)
        progress.finish(result(0, 50.0))
        assert "test batch" not in progress.text()
    assert lines_of(console)[:2] == ["seed 1/3", "seed 1/3 · test batch 2/4"]


def test_an_interrupted_run_ends_with_its_state(clock):
    console = plain_console()

    def interrupted():
        with EpisodeProgress(400, ["a"], console=console, clock=clock) as progress:
            progress.begin(36)
            clock.now += 10
            progress.finish(result(36, 51.2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines_of(console) == ["episode 37/400", "episode 37/400 · accuracy 51.2 % · 1 h 6 min left"]


def test_the_mean_is_of_the_first_method_and_earlier_rows_count_into_it(clock):
    earlier = [result(0, 40.0), result(0, 0.0, "b"), result(7, 99.0), result(1, 99.0, "not of this run")]
    with EpisodeProgress(3, ["a", "b"], rows=earlier, console=plain_console(), clock=clock) as progress:
        assert (progress.total, progress.finished) == (6, 2)
        progress.begin(1)
        clock.now += 5
        progress.finish(result(1, 60.0))
        clock.now += 5
        progress.finish(result(1, 0.0, "b"))
        assert progress.text() == "episode 2/3 · a 50.0 ± 127.1 % (2 episodes, too few) · 10 s left"


def test_the_running_accuracy_says_what_it_rests_on(clock):
    with EpisodeProgress(9, ["a"], console=plain_console(), clock=clock) as progress:
        progress.finish(result(0, 70.0, test_images=10))
        assert progress.text().startswith("accuracy 70.0 % (95 % 34.8 to 93.3, 10 test images)")
        for episode, accuracy in enumerate((60.0, 70.0, 80.0), start=1):
            progress.finish(result(episode, accuracy, test_images=10))
        assert progress.text().startswith("accuracy 70.0 ± 13.0 % (4 episodes, 40 test images)")
        progress.finish(result(4, None, diverged="the loss is not finite from step 3"))
        assert progress.text().startswith("accuracy 70.0 ± 13.0 % (4 episodes, 40 test images) · 1 diverged")


def test_no_accuracy_is_shown_where_there_is_none(clock):
    with EpisodeProgress(1, ["a"], console=plain_console(), clock=clock) as progress:
        progress.begin(0)
        progress.finish(result(0, None))
        assert progress.text() == "episode 1/1"


def test_rounded_fractions_never_pass_the_end_of_an_episode(clock):
    with EpisodeProgress(2, ["a"], console=plain_console(), clock=clock) as progress:
        progress.begin(0)
        clock.now += 8
        for _ in range(7):
            progress.advance(0.2)
        assert progress.remaining_seconds() == pytest.approx(8)


def test_nothing_to_do_prints_nothing(clock):
    console = plain_console()
    with EpisodeProgress(1, ["a"], rows=[result(0, 50.0)], console=console, clock=clock):
        pass
    assert lines_of(console) == []


def test_on_a_terminal_one_bar_shows_the_whole_run(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with EpisodeProgress(4, ["a"], console=console, clock=clock) as progress:
        for episode in range(4):
            progress.begin(episode)
            clock.now += 1
            progress.advance(0.5)
            progress.finish(result(episode, 25.0 * episode))
    text = console.file.getvalue()
    assert "episode 4/4 · accuracy 37.5 ± 51.4 % (4 episodes)" in text
    assert "\x1b[" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3575, "1 h 0 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
