"""Kills, signals, full disks and vanished folders: a run ends as an undisturbed one, or with a non-zero status.

20 runs are killed by SIGKILL and 20 by SIGTERM at random moments, and started again until they end; one run writes to a
disk that is full at each of 8 sizes, and the same command ends it after the disk was made larger; one run loses its
folder. Then rows and adapters are compared with those of an undisturbed run, and nothing temporary may be left.
Full disks are file systems in memory, which only root can mount; without that right they are left out. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measuring import verdict

SIZES = (16, 256, 1160, 1180, 1200, 1220, 1240, 1280)  # KiB; the adapters have 1153, which the start checks
WORDS = [
    "fit", "--config", "demo.yaml", "--protocol.compare", "methods/baseline.yaml", "--protocol.episodes", "4",
    "--trainer.max_epochs", "3", "--data.query", "2", "--protocol.save_adapters", "true",
]  # fmt: skip
RESTARTS = 50


class Campaign:
    """Runs in a folder, and the faults that were found."""

    def __init__(self, folder: Path, accelerator: str) -> None:
        self.folder, self.accelerator, self.faults = folder, accelerator, 0
        began = time.monotonic()
        self.start(folder / "undisturbed").wait()
        self.seconds = time.monotonic() - began
        self.expected = contents(folder / "undisturbed")

    def start(self, run: Path, *more: str) -> subprocess.Popen[bytes]:
        """Start `dtrap fit` in a run folder; its output goes to a file next to it."""
        log = run.with_suffix(".log") if os.access(run.parent, os.W_OK) else Path(os.devnull)
        with log.open("ab") as output:
            words = [*WORDS, "--trainer.accelerator", self.accelerator, "--protocol.folder", str(run), *more]
            command = [sys.executable, "-m", "dtrap", *words]
            return subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)

    def check(self, name: str, met: bool, detail: str = "") -> None:
        """Print one line, and count a fault."""
        self.faults += not met
        print(f"{name}: {verdict(met)} {detail}".rstrip(), flush=True)

    def check_contents(self, name: str, run: Path, detail: str = "") -> None:
        """Compare a run that ended with the undisturbed one."""
        left = [str(path.relative_to(run)) for path in run.rglob(".*.tmp")]
        same = contents(run) == self.expected
        self.check(name, same and not left, " ".join([detail, *left]) if same else f"{detail} other rows or adapters")

    def stop_at_random(self, sent: int, name: str, draw: random.Random) -> None:
        """Stop a run at random moments until it ends."""
        run, statuses = self.folder / name, []
        for restart in range(RESTARTS):
            process = self.start(run)
            if restart < 2:
                try:
                    process.wait(draw.uniform(0.1, self.seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(sent)
            statuses.append(process.wait())
            if statuses[-1] == 0:
                break
        allowed = {0, -sent, 128 + sent} if sent == signal.SIGTERM else {0, -sent}
        if not set(statuses) <= allowed:
            self.check(name, False, f"statuses {statuses}")
        else:
            self.check_contents(name, run, f"statuses {statuses}")

    def kill_with_workers(self, workers: int, moments: int) -> None:
        """Kill a worker, and the command itself, at moments that are spread over a run with workers."""
        words = ("--protocol.workers", str(workers))
        began = time.monotonic()
        status = self.start(self.folder / "workers", *words).wait()
        seconds = time.monotonic() - began
        self.check_contents(f"{workers} workers", self.folder / "workers", f"status {status} in {seconds:.0f} s")
        for number in range(moments):
            moment = seconds * (number + 1) / (moments + 1)
            for victim in ("worker", "driver"):
                run = self.folder / f"{victim}_{number}"
                process = self.start(run, *words)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
                named = [child for child in started if " ".join(child.cmdline()).startswith("ray::Worker")]
                if victim == "driver":
                    process.kill()
                elif named:
                    named[0].kill()
                statuses = [process.wait()]
                _, alive = psutil.wait_procs(started, timeout=120)  # Ray's agents look for their raylet once in a while
                if victim == "driver":
                    statuses.append(self.start(run, *words).wait())
                detail = f"after {moment:.0f} s, {len(named)} workers, statuses {statuses}, {len(alive)} left"
                self.check_contents(f"kill of a {victim}", run, detail)
                self.faults += statuses[-1] != 0 or bool(alive)

    def fill_disk(self, kilobytes: int) -> None:
        """Run on a disk that is too small, then on the same disk after it was made larger."""
        name, disk = f"full disk of {kilobytes} kB", self.folder / f"disk{kilobytes}"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)], check=False)
        if mounted.returncode:
            print(f"{name}: left out, only root can mount")
            return
        try:
            status = self.start(disk / "run").wait()
            if status == 0:
                self.check_contents(name, disk / "run", "large enough")
                return
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            again = self.start(disk / "run").wait()
            detail = f"status {status}, then {again}"
            self.check_contents(name, disk / "run", detail) if again == 0 else self.check(name, False, detail)
        finally:
            subprocess.run(["umount", str(disk)], check=False)

    def lose_folder(self) -> None:
        """Delete the run folder after the first row."""
        run = self.folder / "vanished"
        process = self.start(run)
        while process.poll() is None and not (run / "results.jsonl").exists():
            time.sleep(0.01)
        shutil.rmtree(run, ignore_errors=True)
        status = process.wait()
        self.check("vanished folder", status not in (0, None), f"status {status}")


def contents(run: Path) -> tuple[list[str], dict[str, str]]:
    """Rows without their times, and the adapters, of a run folder."""
    lines = (run / "results.jsonl").read_text(encoding="utf-8").splitlines() if run.exists() else []
    rows = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    adapters = {path.name: adapter_content(path.read_bytes()) for path in sorted(run.glob("adapters/*.safetensors"))}
    return sorted(json.dumps(row, sort_keys=True) for row in rows), adapters


def adapter_content(file: bytes) -> str:
    """The header of a safetensors file, whose keys have no fixed order, and a hash of its tensors."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True)
    return f"{header} {hashlib.sha256(file[end:]).hexdigest()}"


def main() -> int:
    """Run the campaign and report the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs that are killed, and as many that are terminated")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="number of sizes of a full disk")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--workers", type=int, default=0, help="also kill runs on this number of worker processes")
    parser.add_argument("--moments", type=int, default=5, help="moments at which a worker and the command are killed")
    parser.add_argument("--accelerator", default="cpu", help="cpu, or gpu where its numbers do not vary")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), arguments.accelerator)
        print(f"undisturbed: {campaign.seconds:.0f} s, {len(campaign.expected[0])} rows", flush=True)
        for number in range(arguments.runs):
            campaign.stop_at_random(signal.SIGKILL, f"kill {number}", draw)
            campaign.stop_at_random(signal.SIGTERM, f"term {number}", draw)
        if arguments.workers:
            campaign.kill_with_workers(arguments.workers, arguments.moments)
        for kilobytes in SIZES[: arguments.sizes]:
            campaign.fill_disk(kilobytes)
        campaign.lose_folder()
    print(f"{campaign.faults} faults: {verdict(campaign.faults == 0)}")
    return 0 if campaign.faults == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
