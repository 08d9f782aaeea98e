"""Several processes by torchrun: the very numbers of one, loud where one is killed, going on where they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shared_work
import torch
from command_rows import read
from dense_data import MAKERS
from torch import Tensor

from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing import compare_methods
from tokenreduce.lab.comparing.rowbook import RowBook
from tokenreduce.lab.quality.dense_metrics import DenseMetric, DepthMetric, SegmentationMetric
from tokenreduce.lab.quality.detection import DetectionMetric
from tokenreduce.lab.quality.features import FeatureMetric, Features
from tokenreduce.lab.quality.loading import Setup
from tokenreduce.lab.quality.metric import change_interval
from tokenreduce.lab.quality.sharing import Sharing
from tokenreduce.lab.shards import Shards, files_of
from tokenreduce.lab.team import ALONE, Team

TESTS = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "lab")])}


def test_two_processes_give_the_very_numbers_of_one(tmp_path: Path) -> None:
    """Every task, with methods that decide for themselves, bootstrap intervals and images that cannot be read."""
    for task, make in MAKERS.items():
        make(tmp_path / task)
    out = tmp_path / "rows.json"
    command = [*TORCHRUN, str(TESTS / "lab" / "shared_work.py"), str(tmp_path), str(out)]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    expected = shared_work.all_rows(tmp_path, tmp_path / "alone", ALONE)
    assert json.loads(out.read_text()) == expected
    assert [row["images"] for row in expected["depth"][0]] == [4, 4, 4] and len(expected["depth"][1]) == 3
    assert expected["trained"][1]["images"] == 7
    assert len(expected["compared"][0]) == 5 and (tmp_path / "rows.compared" / "rows.jsonl.1").exists()


def child_of_rank(rank: int, parent: int) -> int | None:
    """The process of that rank which `parent` has started, as Linux tells it."""
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or f"\nPPid:\t{parent}\n" not in (folder / "status").read_text():
                continue
            if f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue  # it has ended
    return None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
def test_a_killed_process_is_loud_and_what_was_finished_is_kept(run: Callable[..., str], tmp_path: Path) -> None:
    resume = tmp_path / "shards.jsonl"
    what = ["eval", "--method", "random", "--flops", "0.6", "--limit", "100", "--batch-size", "2"]
    command = [*TORCHRUN, "-m", "tokenreduce", *what, "--resume", str(resume), "--json", str(tmp_path / "two.json")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        other = tmp_path / "shards.jsonl.1"
        while not (other.exists() and other.read_text().count("\n") >= 2):  # rank 0 may not have begun yet
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.005)
        victim = child_of_rank(1, job.pid)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        said = job.communicate(timeout=120)[0]
    assert job.returncode != 0 and not (tmp_path / "two.json").exists()
    assert b"SIGKILL" in said or b"Signal 9" in said

    def kept() -> list[int]:
        written = [path.read_text().splitlines()[:-1] for path in (resume, other) if path.exists()]
        return [json.loads(line)["shard"] for lines in written for line in lines]

    before = kept()  # without the last lines, which may be half written
    assert 0 < len(before) < 50
    run(*what, "--resume", resume, "--json", tmp_path / "one.json")  # any number of processes can go on
    after = [json.loads(line)["shard"] for path in (resume, other) for line in whole_lines(path)]
    assert sorted(after) == list(range(50)), "no batch was left out or measured again"
    run(*what, "--json", tmp_path / "fresh.json")
    assert read(tmp_path / "one.json") == read(tmp_path / "fresh.json")


def whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end."""
    return [line for line in path.read_text().splitlines() if line.endswith("}")]


def test_a_comparison_takes_rows_of_processes_that_were_killed(tmp_path: Path) -> None:
    settings, arms = {"images": 3}, [Arm("tome", flops=0.6), Arm("random", flops=0.6)]
    RowBook(tmp_path / "rows.jsonl.1", settings).add(arms[1], {"top1": 1.0})
    RowBook(tmp_path / "rows.jsonl.2", {"images": 4}).add(arms[0], {"top1": 0.0})
    book = RowBook(tmp_path / "rows.jsonl", settings)
    for path in files_of(tmp_path / "rows.jsonl")[1:]:
        book.adopt(path, [None, *arms])
    assert [book.get(arm) for arm in (None, *arms)] == [None, None, {"top1": 1.0}]
    assert RowBook(tmp_path / "rows.jsonl", settings).get(arms[1]) == {"top1": 1.0}


def test_processes_on_one_cpu_are_not_timed(tmp_path: Path) -> None:
    setup = Setup(sharing=Sharing(Team(0, 2)))
    with pytest.raises(InvalidTypeError, match="cannot be timed beside each other; give --no-speed"):
        compare_methods(["tome"], out=tmp_path, setup=setup)


def test_every_image_is_of_one_process() -> None:
    for count in range(9):
        shares = [Team(rank, 4).mine(list(range(count))) for rank in range(4)]
        assert sorted(item for share in shares for item in share) == list(range(count))


def test_results_come_in_the_order_of_the_images() -> None:
    shards = Shards(3, lambda numbers: [(f"batch {n}" if n else None, [f"no {n}"]) for n in numbers])
    found = shards.work(lambda batch, into: into.update(seen=batch))
    assert [one.get("seen") for one in found] == [None, "batch 1", "batch 2"]
    assert list(shards.left_out) == ["no 0", "no 1", "no 2"]


def boxes(count: int) -> dict[str, Tensor]:
    corners = torch.rand(count, 2) * 20
    labels = torch.randint(1, 3, (count,))
    return {"boxes": torch.cat([corners, corners + 5], 1), "labels": labels, "scores": torch.rand(count)}


METRICS: dict[str, Callable[[], DenseMetric]] = {
    "segmentation": lambda: SegmentationMetric(4),
    "depth": DepthMetric,
    "detection": lambda: DetectionMetric([1, 2]),
}


@pytest.mark.parametrize("task", METRICS)
def test_a_metric_gives_what_it_was_shown(task: str) -> None:
    torch.manual_seed(0)
    make: dict[str, Callable[[], object]] = {
        "segmentation": lambda: torch.randint(4, (5, 6)),
        "depth": lambda: 1 + torch.rand(5, 6),
        "detection": lambda: boxes(4),
    }
    shown = [(make[task](), make[task]()) for _ in range(5)]
    if task == "detection":
        shown[1] = ({name: value[:0] for name, value in boxes(1).items()}, shown[1][1])
        shown = [(found | {"boxes": truth["boxes"]}, truth) for found, truth in shown if len(found["boxes"])] + shown
    whole, first, second, joined = (METRICS[task]() for _ in range(4))
    for number, (prediction, target) in enumerate(shown):
        whole.update([prediction], [target])
        (first if number < 2 else second).update([prediction], [target])
    for part in (first, second):
        joined.take_in(json.loads(json.dumps(part.give())))
        assert part.images == 0
    assert joined.images == whole.images == len(shown)
    assert joined.compute() == whole.compute()
    assert change_interval(whole, joined, 20) == (0.0, 0.0)


def test_a_metric_of_features_gives_what_it_was_shown() -> None:
    torch.manual_seed(0)
    whole, part, joined = FeatureMetric(), FeatureMetric(), FeatureMetric()
    for _ in range(3):
        seen, reference = (Features(torch.randn(2, 8), torch.randn(2, 4, 8), torch.rand(2, 3)) for _ in range(2))
        for metric in (whole, part):
            metric.update(seen, reference)
        joined.take_in(json.loads(json.dumps(part.give())))
    assert joined.compute() == whole.compute() and joined.images == 6 and part.images == 0
