"""Rows: what was measured of one method at one budget, one dict each, with the same keys in Python and in JSON.

`COLUMNS` names the keys that tables show. Besides these there are `options` (arguments of the method besides its
budget), `images` (how many were measured, of dense tasks), `uncounted` (operators whose MACs are unknown) and, in the
row of an arm that the model cannot reach, `refused` (the reason). Shares and accuracies are fractions of 1, `rmse` is
in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Progress = Callable[[float, str], object]  # called with the fraction that is done and what is running

# key -> (heading, how a value is shown)
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "method": ("method", str),
    "budget": ("budget", str),
    "images_per_prompt": ("images", str),
    "mode": ("mode", str),
    "batch_size": ("batch", str),
    "macs": ("MACs", lambda v: f"{v / 1e9:.2f} G" if v >= 1e9 else f"{v / 1e6:.1f} M"),
    "flops_share": ("share", lambda v: f"{v:.3f}"),
    "tokens_left": ("tokens left", lambda v: f"{v:.0f}"),
    "places": ("places", str),
    "prefill_share": ("prefill share", lambda v: f"{v:.3f}"),
    "top1": ("top-1", lambda v: f"{v:.2%}"),
    "top5": ("top-5", lambda v: f"{v:.2%}"),
    "top1_change": ("change, points", lambda v: f"{100 * v:+.2f}"),
    "miou": ("mIoU", lambda v: f"{v:.2%}"),
    "pixel_accuracy": ("pixel accuracy", lambda v: f"{v:.2%}"),
    "ap": ("AP", lambda v: f"{v:.2%}"),
    "ap50": ("AP50", lambda v: f"{v:.2%}"),
    "delta1": ("delta-1", lambda v: f"{v:.2%}"),
    "abs_rel": ("AbsRel", lambda v: f"{v:.4f}"),
    "rmse": ("RMSE, m", lambda v: f"{v:.3f}"),
    "exact": ("exact", lambda v: f"{v:.1%}"),
    "exact_interval": ("95 % interval", lambda v: f"{v[0]:.1%} - {v[1]:.1%}"),
    "change": ("change, points", lambda v: f"{100 * v:+.2f}"),
    "change_interval": ("95 % interval", lambda v: f"{100 * v[0]:+.2f} to {100 * v[1]:+.2f}"),
    "over_random": ("over random, points", lambda v: f"{100 * v:+.1f}"),
    "over_random_interval": ("95 % interval", lambda v: f"{100 * v[0]:+.1f} to {100 * v[1]:+.1f}"),
    "agreement": ("agreement", lambda v: f"{v:.1%}"),
    "agreement_interval": ("95 % interval", lambda v: f"{v[0]:.1%} - {v[1]:.1%}"),
    "kv_kib": ("KV, KiB", lambda v: f"{v:.1f}"),
    "kl": ("KL, nats", lambda v: f"{v:.4f}"),
    "kl_interval": ("95 % interval", lambda v: f"{v[0]:.4f} - {v[1]:.4f}"),
    "top1_agreement": ("top-1 agreement", lambda v: f"{v:.1%}"),
    "top1_agreement_interval": ("95 % interval", lambda v: f"{v[0]:.1%} - {v[1]:.1%}"),
    "encoder_ms": ("encoder ms", lambda v: f"{v:.1f}"),
    "prefill_ms": ("prefill ms", lambda v: f"{v:.1f}"),
    "prefill_limit_share": ("prefill / limit", lambda v: f"{v:.3f}"),
    "ttft_ms": ("first token ms", lambda v: f"{v:.1f}"),
    "ttft_interval": ("95 % interval", lambda v: f"{v[0]:.1f} - {v[1]:.1f}"),
    "ttft_limit_share": ("first / limit", lambda v: f"{v:.3f}"),
    "ms_per_token": ("ms a token", lambda v: f"{v:.2f}"),
    "token_limit_share": ("token / limit", lambda v: f"{v:.3f}"),
    "kv_mib": ("KV, MiB", lambda v: f"{v:.2f}"),
    "kv_share": ("KV share", lambda v: f"{v:.3f}"),
    "class_error": ("class error", lambda v: f"{v:.4f}"),
    "class_error_geometric": ("geo. mean", lambda v: f"{v:.4f}"),
    "token_error": ("token error", lambda v: f"{v:.4f}"),
    "token_error_geometric": ("geo. mean", lambda v: f"{v:.4f}"),
    "saliency_error": ("saliency error", lambda v: f"{v:.4f}"),
    "saliency_error_geometric": ("geo. mean", lambda v: f"{v:.4f}"),
    "median_ms": ("median ms", lambda v: f"{v:.1f}"),
    "p90_ms": ("p90 ms", lambda v: f"{v:.1f}"),
    "images_per_second": ("images/s", lambda v: f"{v:.1f}"),
    "speedup": ("speed-up", lambda v: f"{v:.2f} x"),
    "speedup_interval": ("95 % interval", lambda v: f"{v[0]:.2f} - {v[1]:.2f}"),
    "limit_share": ("time / limit", lambda v: f"{v:.3f}"),
    "peak_memory_mib": ("peak MiB", lambda v: f"{v:.1f}"),
    "plan_us": ("plan us", lambda v: f"{v:.0f}"),
    "apply_us": ("apply us", lambda v: f"{v:.0f}"),
    "attention": ("attention", str),
}


def from_file(row: Mapping[str, Any]) -> bool:
    """Whether the schedule came from a file, as `calibrate` writes it."""
    return str(row.get("budget")).startswith("schedule=")
