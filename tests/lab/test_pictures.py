"""Pictures: the array that is drawn has the right colours in the right cells, and files come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import tokenreduce
from tokenreduce.lab.cells import DARK, LINE, hatch, label_cells, outline, paint_tokens, size_cells
from tokenreduce.lab.pictures import (
    Reduced,
    draw_errors,
    draw_methods,
    draw_tokens,
    draw_tradeoff,
    error_curves,
    tradeoff,
)
from tokenreduce.maps.token_map import TokenMap, identity, keep_tokens

PNG = b"\x89PNG"


def grey_image() -> torch.Tensor:
    """4 x 4 pixels of a 2 x 2 grid, each cell of one value: 0, 0.2, 0.4, 0.8."""
    return torch.tensor([[0.0, 0.2], [0.4, 0.8]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]


def test_merged_cells_get_the_mean_colour_of_their_pixels() -> None:
    token_map = TokenMap(2, dest=torch.tensor([[0, 1, 1, 0]]))
    painted = paint_tokens(grey_image(), token_map, (2, 2))
    assert painted.shape == (4, 4, 3)
    expected = np.array([[0.4, 0.3], [0.3, 0.4]]).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(painted, np.repeat(expected[..., None], 3, 2), atol=1e-6)


def test_identity_map_shows_the_mean_of_every_cell_in_colour() -> None:
    image = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    painted = paint_tokens(image, identity(2, 12), (3, 4), index=1)
    cells = image.reshape(3, 3, 2, 4, 2).mean((2, 4))
    expected = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0)
    np.testing.assert_allclose(painted, expected.numpy(), atol=1e-6)


def test_bytes_and_floats_draw_alike() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4) * 16
    token_map = identity(1, 4)
    np.testing.assert_allclose(
        paint_tokens(image, token_map, (2, 2)), paint_tokens(image / 255, token_map, (2, 2)), atol=1e-6
    )


def test_dropped_cells_fade_to_grey_and_do_not_colour_the_token_that_stands_for_them() -> None:
    token_map = keep_tokens(torch.tensor([[1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    painted = paint_tokens(grey_image(), token_map, (2, 2))[::2, ::2, 0]
    np.testing.assert_allclose(painted, [[0.375, 0.2], [0.4, 0.375 + 0.2]], atol=1e-6)


def test_dense_maps_are_drawn_by_the_output_that_takes_most() -> None:
    share = torch.tensor([[[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.9, 0.0]]])
    painted = paint_tokens(grey_image(), TokenMap(2, share=share), (2, 2))[::2, ::2, 0]
    np.testing.assert_allclose(painted, [[0.1, 0.1], [0.4, 0.375 + 0.2]], atol=1e-6)


def test_lines_run_between_tokens_only() -> None:
    token_map = TokenMap(2, dest=torch.tensor([[0, 1, 0, 1]]))
    labels, _ = label_cells(token_map, (2, 2), 0)
    big = outline(paint_tokens(grey_image(), token_map, (2, 2)), labels, 3)
    assert big.shape == (12, 12, 3)
    np.testing.assert_allclose(big[:, 5:7], LINE)
    np.testing.assert_allclose(big[:, :5, 0], 0.2, atol=1e-6)
    np.testing.assert_allclose(big[:, 7:, 0], 0.5, atol=1e-6)


def test_maps_of_a_model_are_drawn_layer_by_layer(tmp_path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2).eval()
    images = torch.rand(2, 3, 32, 32)
    tokenreduce.patch(model, "tome", r=8)(images)
    report = tokenreduce.report(model)
    maps = {f"layer {layer}": report.map_after(layer) for layer in (0, 3)}
    for layer, token_map in zip((0, 3), maps.values(), strict=True):
        labels, _ = label_cells(token_map, (8, 8), 1)
        assert len(np.unique(labels)) == report.tokens[layer]
    draw_tokens(images, maps, (8, 8), tmp_path / "tokens.png", "a title")
    assert (tmp_path / "tokens.png").read_bytes()[:4] == PNG
    says = {"before": torch.rand(2, 5, 5), "after": torch.rand(2, 5, 5)}
    draw_tokens(images, maps, (8, 8), tmp_path / "more.png", answers=says)
    with Image.open(tmp_path / "tokens.png") as narrow, Image.open(tmp_path / "more.png") as wide:
        assert wide.width * 3 == narrow.width * 5, "a column for each answer"


def test_every_cell_shows_the_size_of_its_token_and_dropped_cells_none() -> None:
    merged = TokenMap(2, dest=torch.tensor([[0, 1, 1, 1]]))
    np.testing.assert_array_equal(size_cells(merged, torch.tensor([1.0, 3.0]), (2, 2)), [[1, 3], [3, 3]])
    pruned = keep_tokens(torch.tensor([[1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    np.testing.assert_array_equal(size_cells(pruned, torch.tensor([5.0, 7.0]), (2, 2)), [[np.nan, 5], [7, np.nan]])
    share = torch.tensor([[[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.9, 0.0]]])
    dense = size_cells(TokenMap(2, share=share), torch.tensor([1.8, 1.2]), (2, 2))
    np.testing.assert_allclose(dense, [[1.8, 1.8], [1.2, np.nan]], rtol=1e-6)


def test_stripes_run_over_dropped_cells_only() -> None:
    plain = np.full((16, 16, 3), 0.9, np.float32)
    out = hatch(plain, np.array([[True, False], [False, False]]))
    striped = (out == np.float32(DARK)).all(-1)
    assert not striped[8:].any() and not striped[:, 8:].any()
    assert striped[:8, :8].sum() == 16, "two of eight pixels in each row"
    assert (plain == np.float32(0.9)).all() and (out[~striped] == plain[~striped]).all()


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 24, 40)])
def test_methods_are_drawn_below_each_other(tmp_path, size) -> None:
    everything, half = identity(1, 4), TokenMap(2, dest=torch.tensor([[0, 0, 1, 1]]))
    pruned = keep_tokens(torch.tensor([[1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    rows = [
        Reduced("merged", {"first": everything, "last": half}, torch.tensor([2.0, 2.0])),
        Reduced("pruned", {"first": everything, "last": pruned}, torch.tensor([1.0, 1.0])),
        Reduced("below one", {"first": everything, "last": half}, torch.tensor([0.5, 400.0])),
    ]
    draw_methods(torch.rand(size), rows, (2, 2), tmp_path / "methods.png")
    draw_methods(torch.rand(size), rows[:1], (2, 2), tmp_path / "one.svg")
    assert (tmp_path / "methods.png").read_bytes()[:4] == PNG
    assert "<svg" in (tmp_path / "one.svg").read_text()


ROWS = [
    {"method": "unpatched", "flops_share": 1.0, "top1": 0.9, "miou": 0.7},
    {"method": "tome", "flops_share": 0.8, "top1": 0.85, "miou": 0.5},
    {"method": "tome", "flops_share": 0.6, "top1": 0.8, "miou": 0.4},
    {"method": "evit", "flops_share": 0.7, "top1": 0.75, "miou": None},
    {"method": "pool", "budget": "flops=0.01", "refused": "the reachable minimum is 0.1"},
]


def test_tradeoff_shows_accuracy_over_compute() -> None:
    [axis] = tradeoff(ROWS, "a title").axes
    assert axis.get_xlabel() == "multiply-adds, % of the unpatched model" and axis.get_ylabel() == "top-1, %"
    assert axis.get_title() == "a title"
    reference, tome, evit = axis.get_lines()
    assert [line.get_label() for line in (reference, tome, evit)] == ["unpatched, 90.00 %", "tome", "evit"]
    np.testing.assert_allclose(reference.get_ydata(), 90)
    np.testing.assert_allclose(tome.get_xydata(), [[60, 80], [80, 85]], err_msg="sorted by compute")
    np.testing.assert_allclose(evit.get_xydata(), [[70, 75]])


def test_what_was_calibrated_is_a_star_beside_the_lines() -> None:
    rows = [*ROWS, {"method": "tome", "budget": "schedule=s.json", "flops_share": 0.7, "top1": 0.88, "miou": 0.6}]
    rows = [row | {"error": 1 - row["flops_share"]} if "flops_share" in row else row for row in rows]
    for axis, place in (
        (tradeoff(rows).axes[0], [70, 88]),
        (error_curves(rows, {"error": "error"}).axes[0], [70, 0.3]),
    ):
        lines = {line.get_label(): line for line in axis.get_lines()}
        np.testing.assert_allclose(lines["calibrated"].get_xydata(), [place])
        assert lines["calibrated"].get_marker() == "*" and lines["calibrated"].get_linestyle() == "None"
        assert len(lines["tome"].get_xydata()) == 2 and list(lines)[-1] == "calibrated"


def test_tradeoff_of_another_figure_leaves_out_rows_without_it(tmp_path) -> None:
    [axis] = tradeoff(ROWS, key="miou", name="mIoU").axes
    assert axis.get_ylabel() == "mIoU, %" and [line.get_label() for line in axis.get_lines()[1:]] == ["tome"]
    np.testing.assert_allclose(axis.get_lines()[1].get_xydata(), [[60, 40], [80, 50]])
    draw_tradeoff(ROWS, tmp_path / "tradeoff.png", key="miou", name="mIoU")
    assert (tmp_path / "tradeoff.png").read_bytes()[:4] == PNG


def test_errors_are_drawn_over_compute_without_rows_that_have_none(tmp_path) -> None:
    rows = [
        {"method": "unpatched", "flops_share": 1.0, "class_error": 0.0, "token_error": 0.0},
        {"method": "tome", "flops_share": 0.8, "class_error": 0.01, "token_error": 0.02},
        {"method": "tome", "flops_share": 0.6, "class_error": 0.1, "token_error": 0.2},
        {"method": "evit", "flops_share": 0.7, "class_error": 0.5},
    ]
    names = {"class_error": "class error", "token_error": "token error"}
    left, right = error_curves(rows, names, "a title").axes
    assert (left.get_title(), right.get_title()) == ("class error", "token error")
    assert [line.get_label() for line in left.get_lines()] == ["tome", "evit"] and left.get_yscale() == "log"
    np.testing.assert_allclose(left.get_lines()[0].get_xydata(), [[60, 0.1], [80, 0.01]], err_msg="sorted by compute")
    [only] = right.get_lines()
    np.testing.assert_allclose(only.get_xydata(), [[60, 0.2], [80, 0.02]])
    draw_errors(rows, tmp_path / "errors.png", names)
    assert (tmp_path / "errors.png").read_bytes()[:4] == PNG


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(1, H, W\) or \(3, H, W\)"):
        paint_tokens(torch.zeros(shape), identity(1, 4), (2, 2))


def test_wrong_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 3 but 4 tokens"):
        paint_tokens(grey_image(), identity(1, 4), (2, 3))
