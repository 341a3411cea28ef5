"""Signals that end a run: what Ctrl-C does, at any moment, with 128 + the signal as exit status."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from dtrap.cli import main
from dtrap.datamodules import EuroSATDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol import run_protocol
from dtrap.signals import ENDING, STOP
from lightning.pytorch import Callback
from rich.console import Console
from run_folders import numbers, rows_of

SIGNALED = Path(__file__).with_name("signaled_fit.py")
NAMES = ["SIGTERM", "SIGHUP", "SIGUSR1"]


@pytest.fixture
def signaled(words, tmp_path):
    """A `dtrap fit` in a process of its own that sends itself a signal: (status, output, errors)."""

    def run(sent, place, number, *more):
        command = [sys.executable, SIGNALED, sent, place, number, *words, "--protocol.folder", "run", *more]
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=100,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def sent_at(monkeypatch):
    """Call a function at the n-th call of a method of FewShotClassifier (from 0)."""

    def patch(name, number, send):
        original, calls = getattr(FewShotClassifier, name), iter(range(10**6))

        def counted(self, *arguments):
            if next(calls) == number:
                send()
            return original(self, *arguments)

        monkeypatch.setattr(FewShotClassifier, name, counted)

    return patch


@pytest.fixture(autouse=True)
def default_handlers():
    """A background shell has some of them ignored."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(name):
    return lambda: signal.raise_signal(signal.Signals[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("place", "number"), [("training_step", 22), ("test_step", 5), ("configure_optimizers", 2)])
def test_a_signal_ends_the_run_as_ctrl_c_does(dtrap, words, tmp_path, sent_at, name, place, number):
    sent_at(place, number, send(name))
    status, out, err = dtrap(*words, "--protocol.folder", "run")
    assert status == 128 + signal.Signals[name], err
    assert "svl-ra · " in out
    assert out.splitlines()[-1].startswith("Interrupted. Resume with: dtrap fit --config eurosat_1shot.yaml ")
    assert [signal.getsignal(number) for number in ENDING[1:]] == [signal.SIG_DFL] * (len(ENDING) - 1)
    assert 0 < len(rows_of(tmp_path / "run")) < 6


def test_a_run_that_a_signal_ended_resumes_with_the_same_numbers(dtrap, words, tmp_path, sent_at):
    sent_at("training_step", 22, send("SIGTERM"))
    assert dtrap(*words, "--protocol.folder", "run")[0] == 143
    assert dtrap(*words, "--protocol.folder", "run")[0] == 0
    assert dtrap(*words, "--protocol.folder", "whole")[0] == 0
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", ["tip_adapter", "tip_adapter_f", "lpp"])
@pytest.mark.parametrize("place", ["on_train_start", "test_step"])
def test_a_tuner_that_trains_itself_or_not_at_all_is_ended_too(dtrap, words, sent_at, tuner, place):
    sent_at(place, 1, send("SIGTERM"))
    status, out, err = dtrap(*words[:-2], "--config", f"tuners/{tuner}.yaml")
    assert status == 143, err
    assert "Resume with: dtrap fit" in out


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_during_the_imports_ends_the_command_with_the_resume_line(signaled, name, tmp_path):
    status, _, err = signaled(name, "import", 0, "--protocol.overwrite", "true")
    assert status == 128 + signal.Signals[name], err
    assert err.startswith("Interrupted. Resume with: dtrap fit --config eurosat_1shot.yaml ")
    assert "--protocol.overwrite true" in err  # nothing has been deleted yet
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_that_the_parent_ignores_stays_ignored(dtrap, words, sent_at, name, tmp_path):
    signal.signal(signal.Signals[name], signal.SIG_IGN)
    sent_at("training_step", 3, send(name))
    status, _, err = dtrap(*words, "--protocol.episodes", 1, "--protocol.folder", "run")
    assert status == 0, err
    assert len(rows_of(tmp_path / "run")) == 2


class Hanging(Callback):
    """Takes for ever to end, as a logger without a network may."""

    def on_exception(self, trainer, pl_module, exception):
        signal.raise_signal(SECOND[0])
        time.sleep(100)


SECOND = [signal.SIGINT]


def test_a_second_signal_ends_the_process_at_once(words, tmp_path):
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_signals, signaled_fit\n"
        "from dtrap.cli import main\n"
        "from dtrap.lightning_modules import FewShotClassifier\n"
        "test_signals.SECOND[0] = signal.Signals[sys.argv[2]]\n"
        "signaled_fit.send_at(FewShotClassifier, 'training_step', 12, signal.SIGTERM)\n"
        "main(sys.argv[3:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), "SIGHUP", *words, "--protocol.folder", "run",
         "--trainer.callbacks+=test_signals.Hanging"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parents[1]}"},
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert "Interrupted. Resume with: dtrap fit" in done.stderr


def test_a_signal_that_python_ignored_ends_the_run_at_the_next_batch(dtrap, words, sent_at, monkeypatch):
    class Ignored:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sys, "unraisablehook", lambda fault: None)
    sent_at("test_step", 3, Ignored)
    assert dtrap(*words)[0] == 143


def test_a_signal_to_a_forked_worker_does_not_end_the_command(dtrap, words, sent_at):
    def fork():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    sent_at("training_step", 3, fork)
    assert dtrap(*words, "--protocol.episodes", 1)[0] == 0


def test_an_error_that_the_signal_caused_elsewhere_is_an_interrupt(dtrap, words, sent_at):
    """As torch reports a worker process that a signal to the whole group ended."""

    def die():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.") from None

    sent_at("training_step", 12, die)
    status, out, err = dtrap(*words)
    assert status == 143, err
    assert "Resume with: dtrap fit" in out


@pytest.mark.parametrize("command", ["test", "predict"])
def test_other_commands_end_with_the_signal_too(dtrap, words, root, sent_at, command):
    status, _, err = dtrap(*words[:-2], "--protocol.folder", "run", "--protocol.episodes", 1,
                           "--protocol.save_adapters", "true")  # fmt: skip
    assert status == 0, err
    sent_at(f"{command}_step", 0, send("SIGTERM"))
    more = ["--images", root] if command == "predict" else []
    adapter = "run" if command == "test" else "run/adapters/episode_0000_svl-ra.safetensors"
    status, _, err = dtrap(command, "--adapter", adapter, *more)
    assert (status, err.splitlines()[-1]) == (143, "Interrupted.")


def test_report_and_data_end_with_the_signal(dtrap, root, monkeypatch):
    from dtrap.datamodules.inspection import check

    monkeypatch.setattr(check, "check", lambda *arguments, **options: signal.raise_signal(signal.SIGHUP))
    status, _, err = dtrap("data", "check", root)
    assert (status, err) == (129, "Interrupted.\n")


def test_a_run_outside_of_the_main_thread_needs_no_handlers(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = []

    def run():
        try:
            main([*words, "--protocol.episodes", "1"])
        except SystemExit as stop:
            ended.append(stop.code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [0]


@pytest.fixture
def notebook(root, tiny_backbone, tmp_path):
    tuner = LoRA(rank=2)

    def run(**trainer):
        data = EuroSATDataModule(root, query=2, shot=1)
        module = FewShotClassifier(tiny_backbone, tuner, Objective())
        return run_protocol(
            {"svl-ra": lambda: module}, data, episodes=2, folder=str(tmp_path / "run"),
            trainer={"max_epochs": 2, **trainer}, console=Console(quiet=True),
        )  # fmt: skip

    return run


class Handlers(Callback):
    seen: ClassVar[list] = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append({number: signal.getsignal(number) for number in ENDING})


def test_run_protocol_leaves_a_callers_handlers_alone(notebook):
    own = {number: (lambda *_: None) for number in ENDING}
    for number, handler in own.items():
        signal.signal(number, handler)
    Handlers.seen.clear()
    notebook(callbacks=[Handlers()])
    assert Handlers.seen == [own, own]
    assert {number: signal.getsignal(number) for number in ENDING} == own


def test_run_protocol_raises_every_ctrl_c_and_restores_the_handler(notebook, sent_at):
    def twice():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            time.sleep(0)
            STOP._time -= 1
        signal.raise_signal(signal.SIGINT)

    sent_at("training_step", 1, twice)
    with pytest.raises(KeyboardInterrupt):
        notebook()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(notebook().rows) == 2


def test_run_protocol_restores_the_callers_own_handler_of_ctrl_c(notebook, sent_at):
    def own(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, own)
    sent_at("training_step", 1, send("SIGINT"))
    with pytest.raises(KeyboardInterrupt):
        notebook()
    assert signal.getsignal(signal.SIGINT) is own


def test_a_callback_that_exits_does_not_end_the_run_as_complete(dtrap, words, sent_at):
    sent_at("training_step", 7, lambda: sys.exit(0))
    status, _, err = dtrap(*words)
    assert status == 2
    assert "ended from within by SystemExit (0)" in err


def test_a_closed_terminal_ends_the_run_with_sighup(words, tmp_path):
    """Nothing can be printed to it then."""
    primary, secondary = os.openpty()

    def control():
        os.setsid()
        fcntl.ioctl(secondary, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "dtrap", *words, "--protocol.folder", "run", "--trainer.max_epochs", "10000"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdin=secondary, stdout=secondary, stderr=secondary, preexec_fn=control
    )
    os.close(secondary)
    printed = b""
    while b"Results:" not in printed:
        printed += os.read(primary, 1024)
    os.close(primary)
    assert run.wait(60) == 129
