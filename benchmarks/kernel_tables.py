"""Tables of docs/kernels.md and docs/state-space.md: compiled kernels, operators on a GPU, and a scan model's speed."""

from __future__ import annotations

from typing import Any

from tabular import table

Data = dict[str, Any]
NOT_MEASURED = "Not measured for this version yet: `python benchmarks/{name}.py` does it."
# images, tokens, heads; images, tokens, channels
ATTENTION = ((256, 197, 6), (32, 197, 6), (32, 1370, 16), (1, 1370, 16))
MERGING = ((256, 196, 384), (32, 196, 384), (32, 1369, 1024), (1, 1369, 1024))


def compiled(data: Data) -> str:
    """Kernels for methods: milliseconds of the reference and of the kernel, and the gain."""
    heads = ("kernel", "batch", "tokens", "channels", "removed", "reference, ms", "compiled, ms", "gain")
    rows = []
    for row in data["rows"]:
        sizes = [f"{row[key]:,}" for key in ("batch", "tokens", "key_channels", "removed")]
        rows.append([f"`{row['kernel']}`".replace(" + ", "` and `"), *sizes, *times(row)])
    return table(heads, rows)


def times(row: Data) -> list[str]:
    return [f"{row['reference_ms']:.2f}", f"{row['compiled_ms']:.2f}", f"{row['speedup']:.1f} x"]


def scanned(data: Data) -> str:
    """One walk of the scan, and a whole model, with the kernel and with the loop."""
    if "scans" not in data:
        return NOT_MEASURED.format(name="kernels")
    heads = ("what", "batch", "threads", "loop of PyTorch, ms", "compiled, ms", "gain")
    rows = []
    for row in data["scans"]:
        name = "`selective_scan`" if row["kernel"] == "selective_scan" else row["kernel"]
        rows.append([name, str(row["batch"]), str(row["threads"]), *times(row)])
    return table(heads, rows)


def scan_model(data: Data | None) -> str:
    """Speed of a scan model, of the median run, with all runs."""
    if data is None:
        return NOT_MEASURED.format(name="vim_speed")
    heads = ("method", "batch", "unpatched, ms", "patched, ms", "speed-up", "all runs", "time / limit", "all runs")
    rows = []
    for row in data["rows"]:
        cells = [f"`{row['method']}`", str(row["batch_size"]), f"{row['unpatched_ms']:.0f}", f"{row['median_ms']:.0f}"]
        for key, unit in (("speedup", " x"), ("limit_share", "")):
            cells += [f"{row[key]:.2f}{unit}", ", ".join(f"{one[key]:.2f}" for one in row["runs"])]
        rows.append(cells)
    return f"{data['model']}, {data['threads']} threads, flops={data['flops']}:\n\n{table(heads, rows)}"


def launches(data: Data | None) -> str:
    """Kernels that a reducing layer launches, by method, without and with Triton."""
    if data is None:
        return NOT_MEASURED.format(name="launch_counts")
    rows = data["rows"]
    ways = {"without Triton": "kernels", "with Triton": "triton"}
    cells = [[title, *(f"{row[key]:g}" for row in rows)] for title, key in ways.items()]
    return table(["", *(f"`{row['method']}`" for row in rows)], cells)


def attention(data: Data) -> str:
    """Microseconds of attention without sizes, and with them in three ways; PyTorch chooses its own kernel."""
    found = {
        (row["batch"], row["tokens"], row["heads"], row["way"]): row["us"]
        for row in data["rows"]
        if row["stage"] == "attention" and row["backend"] == "default"
    }
    # The library's own kernel was timed in the sweep over its tiles, whose first are its own choice.
    own: dict[tuple[int, ...], float] = {}
    for row in data["rows"]:
        if row["stage"] == "sweep" and row["tiles"] != ["none"]:
            own.setdefault((row["batch"], row["tokens"], row["heads"]), row["us"])
    heads = ("images, tokens, heads", "no sizes, PyTorch", "mask, PyTorch", "channels, PyTorch", "Triton's operator")
    rows = []
    for shape in ATTENTION:
        values = [found[(*shape, way)] for way in ("none", "mask", "channels")] + [own[shape]]
        rows.append([named(shape), *(f"{value:.0f}" for value in values)])
    return table(heads, rows)


def named(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def extension(data: Data) -> str:
    """Microseconds of matching and merging by Triton and by the extension, in a graph."""
    found = {
        (row["operator"], tuple(row["shape"][:3]), row["choice"]): row["graph_us"]
        for row in data["rows"]
        if row["stage"] == "micro" and "graph_us" in row
    }
    rows = []
    for operator, title in (("match", "bipartite_match"), ("merge", "merge_apply")):
        for choice, by in (("triton", "Triton"), ("cuda", "extension")):
            cells = [f"{found[operator, shape, choice]:.1f}" for shape in MERGING]
            rows.append([f"`{title}`, {by}", *cells])
    return table(["", *map(named, MERGING)], rows)


def size_errors(data: Data) -> str:
    """Root mean square errors of both ways of giving sizes to attention."""
    heads = ("type", "channels of a head", "error, sizes in channels", "error, mask")
    rows = [
        [row["dtype"], str(row["head_width"]), f"{row['channels']:.1e}", f"{row['mask']:.1e}"] for row in data["rows"]
    ]
    return table(heads, rows)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    return {
        ("docs/kernels.md", "kernels"): compiled(read["kernels"]),
        ("docs/kernels.md", "attention"): attention(read["gpu"]),
        ("docs/kernels.md", "extension"): extension(read["gpu"]),
        ("docs/kernels.md", "size errors"): size_errors(read["size_errors"]),
        ("docs/kernels.md", "launches"): launches(read.get("launches")),
        ("docs/state-space.md", "kernels"): scanned(read["kernels"]),
        ("docs/state-space.md", "speed"): scan_model(read.get("vim_speed")),
    }
