"""Tables of docs/integrations.md: requests a second of the feature server, and exported models in their runtimes."""

from __future__ import annotations

from typing import Any


def setting(data: dict[str, Any], *words: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return f"{', '.join((data['model'] + ' with random weights', *words))}; {versions}:"


def serving(data: dict[str, Any]) -> str:
    """Requests a second, the gain with its lowest and highest round, and where the time goes."""
    words = f"at most {data['batch']} images a batch, {data['concurrency']} requests under way, {data['cores']} cores"
    lines = [
        setting(data, words),
        "",
        "| server | requests/s | gain | rounds | median wait, ms | images a batch |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in data["rows"]:
        name = "unpatched" if row["method"] == "unpatched" else f"`{row['method']}`, flops={data['flops']}"
        cells = [name, f"{row['requests_per_second']:.1f}", f"{row['gain']:.2f} x"]
        cells += [f"{min(row['gains']):.2f}-{max(row['gains']):.2f}", f"{row['latency_ms']:.0f}", f"{row['batch']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    client = max(row["client_ms"] for row in data["rows"])
    lines += [
        "",
        f"On the same cores, reading a file takes the server {data['decoding_ms']:.1f} ms, and the client takes "
        f"{client:.1f} ms a request. The load of the machine before was {data['load_before']:.1f}.",
    ]
    return "\n".join(lines)


def runtime(data: dict[str, Any]) -> str:
    """Milliseconds and gains with their intervals, in the runtime and in PyTorch where every row has that, and the
    difference."""
    torch_too = all("torch_ms" in row for row in data["rows"].values())
    names = ["model", "ms", "gain"] + ["ms, PyTorch", "gain, PyTorch"] * torch_too + ["difference from PyTorch"]
    lines = [setting(data, f"batch {data['batch']}", f"{data['threads']} threads, flops={data['flops']}"), ""]
    lines += [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    for name, row in data["rows"].items():
        cells = [name, f"{row['ms']:.0f}", gain(row, "speedup")]
        cells += [f"{row['torch_ms']:.0f}", gain(row, "torch_speedup")] if torch_too else []
        lines.append(f"| {' | '.join([*cells, format(row['difference'], '.0e')])} |")
    if "load_before" in data:
        gains = f"Gains are medians over {data['rounds']} rounds, with 95 % intervals."
        lines += ["", f"{gains} The load of the machine before was {data['load_before']:.1f}."]
    return "\n".join(lines)


def gain(row: dict[str, Any], key: str) -> str:
    if f"{key}_interval" not in row:
        return f"{row[key]:.2f} x"
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.2f} x ({low:.2f}-{high:.2f})"


MAKERS = {"serving": serving, "onnxruntime": runtime, "openvino": runtime}


def tables(read: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {("docs/integrations.md", name): make(read[name]) for name, make in MAKERS.items()}
