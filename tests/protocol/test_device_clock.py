"""The share of a run's time in which the device has no batch."""

import csv
import json
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA, TipAdapter
from dtrap.protocol import device_clock, run_protocol
from dtrap.protocol.device_clock import DeviceClock, DeviceSeconds
from lightning.pytorch import Callback
from rich.console import Console

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAINER = {"max_epochs": 2, "accelerator": "cpu"}


class Time:
    """A clock that is set by hand; `monotonic` reads it."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def at(monkeypatch):
    clock = Time()
    monkeypatch.setattr(device_clock, "time", clock)

    def move(seconds):
        clock.now = float(seconds)

    return move


def test_time_between_batches_is_idle(at):
    clock = DeviceClock()
    at(100)
    clock.begin()
    at(103)
    with clock.working(CPU):
        at(104)
        with clock.working(CPU):  # such as a validation within a step
            at(105)
        at(106)
    at(110)
    clock.begin()  # the next episode: what lies between counts
    with clock.working(CPU):
        at(111)
    at(120)
    seconds = clock.seconds()
    assert (seconds.total, seconds.busy, seconds.idle) == (20.0, 4.0, 16.0)
    assert seconds.idle_share == 0.8
    assert str(seconds) == "Device without a batch: 80 % of 20 s"


def test_a_batch_that_an_error_ended_does_not_count(at):
    clock = DeviceClock()
    clock.begin()
    clock._open(CPU)
    at(5)
    clock.begin()
    with clock.working(CPU):
        at(6)
    clock._close(CPU)
    at(10)
    assert clock.seconds() == DeviceSeconds(10.0, 1.0)


def test_on_a_gpu_the_device_says_how_long_it_worked(at, monkeypatch):
    waited = []

    class Event:
        """Recorded where the device is then: it finishes each batch two seconds after Python."""

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.moment = device_clock.time.now + 2

        def synchronize(self):
            waited.append(self.moment)

        def elapsed_time(self, end):
            return 1000 * (end.moment - self.moment)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(device_clock, "MOST_PAIRS", 4)
    clock = DeviceClock()
    clock.begin()
    for step in range(6):
        at(10 * step)
        with clock.working(CUDA):
            at(10 * step + 4)
    assert len(clock._pairs) < 4  # a long run keeps few of them
    assert waited == [6, 16, 26, 36]
    at(60)
    assert clock.seconds() == DeviceSeconds(60.0, 24.0)


def module_of(tuner):
    backbone = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")
    return lambda: FewShotClassifier(backbone, tuner, Objective(0.0, 0.0))


def run(folder, episodes, *, console=None, tuner=None, data=None, **trainer):
    data = data or ShapesDataModule(way=3, shot=1, query=4)
    quiet = console or Console(quiet=True)
    methods = {"baseline": module_of(tuner or LoRA(rank=2))}
    return run_protocol(methods, data, trainer=TRAINER | trainer, episodes=episodes, folder=str(folder), console=quiet)


def test_summary_and_logger_say_it_and_a_resumed_run_adds_to_it(tmp_path):
    first = run(tmp_path, 1).summary["device"]["seconds"]
    assert 0 < first["idle"] < first["total"]
    assert first["idle_share"] == pytest.approx(first["idle"] / first["total"], abs=1e-3)
    second = run(tmp_path, 3).summary["device"]["seconds"]
    assert second["total"] > first["total"]
    assert second["idle"] > first["idle"]
    assert run(tmp_path, 3).summary["device"]["seconds"] == second  # nothing was run
    with (tmp_path / "metrics.csv").open() as file:
        shares = [row["idle_share"] for row in csv.DictReader(file)]
    assert shares[0] == ""  # of an earlier start
    assert all(0 < float(share) < 1 for share in shares[1:])
    assert len(shares) == 3
    (tmp_path / "summary.json").unlink()
    assert run(tmp_path, 3).summary["device"]["seconds"] == {"total": 0, "idle": 0, "idle_share": None}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"device": 3}', '{"device": {"seconds": {"total": 1, "idle": 2}}}']
)
def test_a_summary_without_it_is_read(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_text(content)
    assert DeviceSeconds.read(path) == DeviceSeconds()
    assert DeviceSeconds.read(tmp_path / "none") == DeviceSeconds()


def test_the_command_prints_it_once(dtrap):
    words = ["--config", "demo.yaml", "--data.way", 3, "--data.query", 4, "--trainer.max_epochs", 2]
    words += ["--trainer.callbacks", "null", "--protocol.episodes", 1, "--protocol.folder", "r"]
    status, out, err = dtrap("fit", *words)
    assert status == 0, err
    assert out.count("Device without a batch: ") == 1
    share = json.loads(Path("r/summary.json").read_text())["device"]["seconds"]["idle_share"]
    printed = float(re.search(r"Device without a batch: (\d+) % of", out)[1])
    assert printed == pytest.approx(100 * share, abs=0.6)
    assert "Device without" not in dtrap("fit", *words)[1]


def test_what_a_tuner_computes_before_its_first_step_is_work(tmp_path, monkeypatch):
    counted = []
    original = DeviceClock.working

    def working(self, device):
        counted.append(device.type)
        return original(self, device)

    monkeypatch.setattr(DeviceClock, "working", working)
    run(tmp_path, 1, tuner=TipAdapter())
    assert counted == ["cpu"]


def test_the_module_is_left_as_it_was(tmp_path):
    made = []

    def make():
        made.append(module_of(LoRA(rank=2))())
        return made[0]

    data = ShapesDataModule(way=3, shot=1, query=4)
    quiet = Console(quiet=True)
    run_protocol({"a": make}, data, trainer=TRAINER, episodes=1, folder=str(tmp_path), console=quiet)
    assert made[0].device_work is nullcontext
    assert made[0].logs_steps


class Reader(Callback):
    """Reads what the steps log, as Lightning's EarlyStopping does."""

    def __init__(self):
        self.totals = []

    def __deepcopy__(self, memo):
        return self

    def on_train_batch_end(self, trainer, *_):
        self.totals.append(float(trainer.callback_metrics["train/total"]))


def test_steps_log_for_a_callback_of_somebody_else(tmp_path):
    reader = Reader()
    rows = run(tmp_path / "read", 1, callbacks=[reader]).rows
    assert reader.totals == pytest.approx(rows[0]["terms"]["total"], rel=1e-5)
    assert len(reader.totals) == 2
    alone = run(tmp_path / "alone", 1).rows
    assert {**alone[0], "seconds": 0} == {**rows[0], "seconds": 0}


# Decoding ahead


class Watched(ShapesDataModule):
    """Remembers which threads draw its pictures."""

    opens_files = True

    def __init__(self, *arguments, **options):
        self.threads, self.gate = [], threading.Event()
        self.gate.set()
        super().__init__(*arguments, **options)

    def check_images(self, tasks):
        pass

    def load_image(self, position):
        self.threads.append(threading.current_thread().name)
        if "ahead" in self.threads[-1]:
            self.gate.wait(20)
        return super().load_image(position)


def test_rows_do_not_depend_on_what_is_decoded_ahead(tmp_path, monkeypatch):
    shapes = {"way": 3, "shot": 1, "query": 4}
    ahead, plain = Watched(**shapes), Watched(**shapes)
    rows = run(tmp_path / "ahead", 3, data=ahead).rows
    monkeypatch.setattr(Watched, "expect", lambda self, episode: None)
    expected = run(tmp_path / "plain", 3, data=plain).rows
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in expected]
    assert sum("ahead" in name for name in ahead.threads) == 2 * 3 * 5
    assert len(ahead.threads) == len(plain.threads) == 3 * 3 * 5
    assert not any("ahead" in thread.name for thread in threading.enumerate())


def test_an_interrupted_run_decodes_no_more(tmp_path):
    class Interrupting(Callback):
        def __deepcopy__(self, memo):
            return self

        def on_train_end(self, trainer, pl_module):
            raise KeyboardInterrupt

    data = Watched(way=3, shot=1, query=4)
    data.gate.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, data=data, callbacks=[Interrupting()])
    data.gate.set()
    for thread in threading.enumerate():
        if "ahead" in thread.name:
            thread.join(20)
    assert len(data.threads) == 3 * 5 + 1  # the one that had begun
    assert data._ahead is None
