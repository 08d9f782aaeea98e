"""The dispatch mode of `count_flops`: what each operator costs, and which operators cost nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenreduce.budget.phase import current_phase


class _Active(threading.local):
    def __init__(self) -> None:
        self.counters: list[MacCounter] = []


_active = _Active()


class MacCounter(FlopCounterMode):
    """Keeps FLOPs by phase (not by module) and the operators with no known cost."""

    def __init__(self) -> None:
        super().__init__(display=False)
        # Modules do not matter here, and the tracker's global hooks make compiled modules warn.
        self.mod_tracker = nullcontext()  # type: ignore[assignment]
        self.uncounted: Counter[str] = Counter()

    def __enter__(self) -> MacCounter:
        _active.counters.append(self)
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        _active.counters.remove(self)
        return super().__exit__(*args)

    def _count_flops(self, func_packet: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _active.counters[-1] is not self:  # a forward that rehearses its reducer for a budget counts that apart
            return out
        formula = _MACS.get(_plain_name(func_packet))
        known = formula is not None or func_packet in self.flop_registry
        if known and all(_is_dense(value) for value in (*args, *kwargs.values())):
            flops = 2 * formula(args, out) if formula else self.flop_registry[func_packet](*args, **kwargs, out_val=out)
            # In the base class's own table, because that is what it saves and merges around torch.cond.
            self.flop_counts[current_phase()][func_packet] += flops
        elif known or not _does_no_matrix_work(func_packet):
            self.uncounted[str(func_packet)] += 1
        return out


def _is_dense(value: Any) -> bool:
    """False for sparse and nested tensors, whose work does not follow from their shape."""
    if not isinstance(value, torch.Tensor):
        return True
    return not value.is_nested and (value.layout == torch.strided or value.is_mkldnn)


def _plain_name(packet: Any) -> str:
    """`add` for `aten.add` and `aten.add_`, `quantized.linear` for an operator from elsewhere."""
    return str(packet).removeprefix("aten.").rstrip("_")


@cache
def _does_no_matrix_work(packet: Any) -> bool:
    name = _plain_name(packet)
    if name in _NO_MATRIX_WORK:
        return True
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    # In-place operators often lack the tags of their functional twins.
    twin = getattr(torch.ops.aten, name, packet)
    overloads = [getattr(p, overload) for p in (packet, twin) for overload in p.overloads()]
    return any(o.is_view or torch.Tag.pointwise in o.tags or torch.Tag.view_copy in o.tags for o in overloads)


def _attention(args: Any, out: Any) -> int:
    query, key, value = (tensor.shape for tensor in args[:3])
    return int(prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _multi_head_attention(args: Any, out: Any) -> int:
    query, key, value, width = args[:4]
    projections = (2 * query.numel() + key.numel() + value.numel()) * width
    return int(projections + 2 * query.numel() * key.shape[1])


def _encoder_layer(args: Any, out: Any) -> int:
    tokens, width, hidden = args[0], args[1], args[14].shape[0]
    return int(tokens.numel() * (4 * width + 2 * tokens.shape[1] + 2 * hidden))


# MACs from the arguments and the result, by `_plain_name`. The base class knows `addmm` and `baddbmm` too, but not in
# place.
_MACS: dict[str, Callable[[Any, Any], int]] = {
    name: formula
    for formula, names in (
        (
            lambda args, out: args[0].numel() * out.shape[-1],
            "linear mkldnn_linear _int_mm _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
            "quantized.linear quantized.linear_relu quantized.linear_dynamic quantized.linear_relu_dynamic "
            "quantized.linear_dynamic_fp16 quantized.linear_relu_dynamic_fp16",
        ),
        (lambda args, out: args[1].numel() * out.shape[-1], "addbmm addmm baddbmm _addmm_activation"),
        (lambda args, out: args[0].numel(), "dot mv vdot"),
        (lambda args, out: args[1].numel(), "addmv"),
        (lambda args, out: out.numel(), "addr"),
        (lambda args, out: out.numel() * args[0].shape[-1], "_cdist_forward _euclidean_dist"),
        (lambda args, out: out.numel() * prod(args[1].shape[1:]), "mkldnn_convolution"),
        (_attention, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable"),
        # Eigenvectors of a symmetric matrix by QR steps take about 9 n^3 operations (Golub and Van Loan, section 8.3).
        (lambda args, out: args[0].numel() * args[0].shape[-1] * 9 // 2, "_linalg_eigh linalg_eigh"),
        # Of each state: dt A, dt x B, the decay and C h.
        (lambda args, out: 4 * args[0].numel() * args[2].shape[1], "tokenreduce.selective_scan"),
        (lambda args, out: args[0].numel() * args[1].shape[1], "tokenreduce.causal_conv"),
        (_multi_head_attention, "_native_multi_head_attention"),
        (_encoder_layer, "_transformer_encoder_layer_fwd"),
    )
    for name in names.split()
}

# By `_plain_name`; only what PyTorch's own tags (view, copy of a view, pointwise) do not already tell.
_FREE = {
    "making tensors and random numbers": """
        arange bernoulli complex empty empty_like empty_strided exponential eye fill full full_like lift_fresh linspace
        multinomial native_dropout new_empty new_empty_strided new_full new_ones new_zeros normal ones ones_like rand
        rand_like randint randint_like randn randn_like random randperm scalar_tensor tril_indices triu_indices uniform
        zero zeros zeros_like""",
    "copying, padding, rearranging": """
        _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned _pin_memory _reshape_copy _stack _to_copy
        _to_dense _to_sparse _unsafe_view block_diag cat channel_shuffle clone col2im constant_pad_nd copy diag_embed
        flip im2col pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat repeat_interleave
        replication_pad1d replication_pad2d resize roll set stack to_mkldnn to_padded_tensor tril triu unsafe_split
        unsafe_split_with_sizes""",
    "indexing": """
        _index_put_impl _unsafe_index _unsafe_index_put embedding gather index index_add index_copy index_fill index_put
        index_reduce index_select masked_scatter masked_select nonzero nonzero_static put scatter scatter_add
        scatter_reduce segment_reduce select_scatter slice_scatter take""",
    "ordering and searching": """
        _unique _unique2 bincount bucketize histc isin kthvalue median mode nanmedian searchsorted sort topk
        unique_consecutive unique_dim""",
    "reductions and scans": """
        _aminmax _cummax_helper _cummin_helper _is_all_true _is_any_true _logcumsumexp all amax amin aminmax any argmax
        argmin count_nonzero cummax cummin cumprod cumsum dist equal linalg_vector_norm logcumsumexp logsumexp max mean
        min nansum norm prod std std_mean sum trace var var_mean""",
    "norms, softmax, element-wise functions without a tag": """
        _fused_rms_norm _log_softmax _masked_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training
        _prelu_kernel _safe_softmax _softmax _weight_norm_interface cudnn_batch_norm floor_divide glu hardswish
        log_sigmoid_forward native_batch_norm native_group_norm native_layer_norm renorm""",
    "pooling and resampling, whose fixed weights no paper counts": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
        _upsample_nearest_exact2d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d grid_sampler_2d
        max_pool2d_with_indices max_pool3d_with_indices upsample_bicubic2d upsample_bilinear2d upsample_linear1d
        upsample_nearest1d upsample_nearest2d upsample_trilinear3d""",
    "number formats, questions, marks": """
        _assert_async _assert_scalar _assert_tensor_metadata _fused_sdp_choice _local_scalar_dense dequantize int_repr
        is_pinned is_same_size is_set_to q_scale q_zero_point quantize_per_channel quantize_per_tensor
        quantize_per_tensor_dynamic prim.device profiler._record_function_enter_new profiler._record_function_exit""",
    "this library's own, which compare and average distances": "tokenreduce.agglomerate",
}
_NO_MATRIX_WORK = frozenset(name for names in _FREE.values() for name in names.split())
