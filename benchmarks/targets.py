"""Which method runs on which deployment target: one small random model, every method, with half of the tokens to keep.

    pip install openvino executorch coremltools   # a target whose package is missing says so in its cells
    python benchmarks/targets.py                  # resumes where it stopped
    python benchmarks/targets.py --again --methods "tome;ward" --targets "Core ML"

Each row is made in a process of its own, since converters may crash. Results go to benchmarks/results/targets.json,
from which `make_table.py --write` makes docs/targets.md; cells of earlier code are run again. Where a method does not
fit the model, the first family that it fits stands for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm  # noqa: F401  adapters load only when their library is there
import torch
from arm_files import same_code, stamp
from origins import earlier
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from backbones import BY_NAME, Backbone, new_model  # noqa: E402
from choosing import main_row  # noqa: E402
from transforming import Outputs  # noqa: E402

import tokenreduce  # noqa: E402
from tokenreduce.lab.environment import environment  # noqa: E402
from tokenreduce.ops.portable import portable  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "targets.json"
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "coremltools")
IMPORTS = {"executorch": "executorch.exir"}
EXACT = 1e-4  # of the outputs' scale; a decision that differs costs more
SECONDS = 600
POOLED = BY_NAME["timm_vit_maximum"]
# With a class token and a head that reads all others: no mistake stays unseen.
SMALL = dataclasses.replace(POOLED, build=partial(POOLED.build, depth=2, global_pool="avg"))
ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "unpatched": (None, {}),
    **{name: (name, {}) for name in tokenreduce.methods("encoder")},
    "ward, rounds=3": ("ward", {"rounds": 3}),
}

Found = list[list[Tensor]] | None  # the outputs for each batch; None where nothing can run here


class Case:
    """A patched model as a function of images, and its graphs, each made once."""

    def __init__(self, row: Backbone, method: str | None, options: dict[str, Any]) -> None:
        model = new_model(row)
        if method is not None:
            few = {"iterations": 2} if "iterations" in tokenreduce.describe(method)["options"] else {}
            tokenreduce.patch(model, method, ratio=0.5, **few | options)
        self.call = Outputs(row, model).eval()
        self.batches = [row.images(2, seed=seed) for seed in (1, 2)]
        self.expected = [self.call(x) for x in self.batches]

    @cached_property
    def program(self) -> Any:
        return torch.export.export(self.call, (self.batches[0],))

    @cached_property
    def onnx(self) -> Any:
        made = torch.onnx.export(self.call, (self.batches[0],), dynamo=True, optimize=False, verbose=False)
        return made.model_proto


def onnx_runtime(case: Case) -> Found:
    import onnxruntime

    session = onnxruntime.InferenceSession(case.onnx.SerializeToString())
    name = session.get_inputs()[0].name
    return [[torch.from_numpy(out) for out in session.run(None, {name: x.numpy()})] for x in case.batches]


def openvino_by_export(case: Case, program: Any) -> Found:
    import openvino

    return in_openvino(openvino.convert_model(program), case)


def openvino_from_onnx(case: Case) -> Found:
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(case.onnx, f"{folder}/model.onnx")
        return in_openvino(openvino.convert_model(f"{folder}/model.onnx"), case)


def in_openvino(converted: Any, case: Case) -> Found:
    import openvino

    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [[torch.from_numpy(out.copy()) for out in compiled(x.numpy()).values()] for x in case.batches]


def executorch(case: Case, program: Any) -> Found:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    lowered = to_edge(program).to_executorch()
    method = Runtime.get().load_program(lowered.buffer).load_method("forward")
    return [[out.clone() for out in method.execute([x])] for x in case.batches]


def core_ml(case: Case, program: Any) -> Found:
    """Conversion only: its programs run on a Mac."""
    import coremltools

    coremltools.convert(program.run_decompositions({}))
    return None


def exported(run: Callable[[Case, Any], Found]) -> Callable[[Case], str]:
    """The outcome of a target for programs of `torch.export`; where one is refused, that of a portable program."""

    def outcome(case: Case) -> str:
        plain = judged(lambda case: run(case, case.program), case)
        if not plain.startswith("refused"):
            return plain
        simpler = judged(lambda case: run(case, portable(case.program)), case)
        return simpler if simpler.startswith("refused") else f"{simpler}, portable"

    return outcome


# The package, and what is to be done.
TARGETS: dict[str, tuple[str, Callable[[Case], str]]] = {
    "ONNX Runtime": ("onnxruntime", lambda case: judged(onnx_runtime, case)),
    "OpenVINO by export": ("openvino", exported(openvino_by_export)),
    "OpenVINO from ONNX": ("openvino", lambda case: judged(openvino_from_onnx, case)),
    "ExecuTorch": ("executorch", exported(executorch)),
    "Core ML": ("coremltools", exported(core_ml)),
}


def judged(run: Callable[[Case], Found], case: Case) -> str:
    """ "right" or "wrong" with the largest difference, "converts" where nothing runs here, or "refused" with what the
    converter said."""
    try:
        found = run(case)
    except Exception as error:  # converters raise whatever they meet
        said = first_sentence(str(error)) or f"in {traceback.extract_tb(error.__traceback__)[-1].name}"
        return f"refused: {type(error).__name__}: {said}"
    if found is None:
        return "converts"
    pairs = [pair for here, there in zip(case.expected, found, strict=True) for pair in zip(here, there, strict=True)]
    scale = max(1.0, *(float(here.abs().max()) for here, _ in pairs))
    difference = max(float((here - there).abs().max()) for here, there in pairs)
    return f"{'right' if difference < EXACT * scale else 'wrong'}: {difference:.0e}"


def first_sentence(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "No conversion rule" in line or "not supported" in line] or lines or [""]
    return telling[0].partition(". ")[0][:300]


@torch.no_grad()
def send(targets: list[str], method: str | None, options: dict[str, Any], there: Any) -> None:
    gc.disable()  # tracing makes so many objects that looking for garbage takes a quarter of the time
    case = Case(SMALL if method is None else main_row(method, SMALL), method, options)
    for target in targets:
        there.send(TARGETS[target][1](case))


def outcomes(targets: list[str], *what: Any) -> Iterator[tuple[str, str]]:
    """Of these targets, from a process of its own; from another one after it was stopped, or has crashed."""
    context = multiprocessing.get_context("fork")
    while targets:
        here, there = context.Pipe(False)
        process = context.Process(target=send, args=(targets, *what, there))
        process.start()
        there.close()
        try:
            for target in [*targets]:
                said = here.recv() if here.poll(SECONDS) else ""
                targets = targets[1:]
                yield target, said or f"not run: more than {SECONDS} s"
                if not said:
                    break
        except EOFError:
            process.join()
            yield targets[0], f"crashed: exit code {process.exitcode}"
            targets = targets[1:]
        finally:
            process.kill()
            process.join()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=";".join(TARGETS), help="only these, with semicolons between them")
    parser.add_argument("--methods", default=";".join(ROWS), help="only these, with semicolons between them")
    parser.add_argument("--again", action="store_true", help="also what was run before")
    return parser.parse_args()


def main() -> None:
    args = parse()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"versions": {}, "rows": {}}
    data["environment"] = environment()
    stamped, before = stamp({}), data.get("measured", {})
    data["measured"] = {
        name: dict.fromkeys(cells, earlier("targets")) | before.get(name, {}) for name, cells in data["rows"].items()
    }
    there = {one for one in PACKAGES if importlib.util.find_spec(one)}
    data["versions"] |= {one: importlib.metadata.version(one) for one in PACKAGES if one in there}
    for one in there:  # once, not in every process
        importlib.import_module(IMPORTS.get(one, one))
    for name in args.methods.split(";"):
        cells = data["rows"].setdefault(name, {})
        commits = data["measured"].setdefault(name, {})
        asked = args.targets.split(";")
        wanted = [one for one in asked if args.again or one not in cells or not same_code(commits[one], stamped)]
        found = {target: f"not run: {TARGETS[target][0]} is not installed" for target in wanted}
        for target, said in outcomes([target for target in wanted if TARGETS[target][0] in there], *ROWS[name]):
            found[target] = said
            print(name, "|", target, "|", said, flush=True)
        data["rows"][name] = {target: (cells | found)[target] for target in TARGETS if target in cells | found}
        commits.update(dict.fromkeys(found, stamped))
        data["rows"] = {name: data["rows"][name] for name in ROWS if name in data["rows"]}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
