"""transformers says what a forward collects by private names; without them a sentence says what to do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from tokenreduce.patches.transformers import _collector
from transformers import ViTConfig, ViTModel
from transformers.utils import output_capturing

from tokenreduce import patch, unpatch

ROOT = Path(__file__).parents[2]
X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_model() -> ViTModel:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3}
    return ViTModel(ViTConfig(**sizes, image_size=32, patch_size=4)).eval()


def test_a_renamed_collector_is_an_error_that_names_versions(monkeypatch) -> None:
    model = patch(small_model(), "tome", ratio=0.5)
    monkeypatch.setitem(sys.modules, output_capturing.__name__, ModuleType(output_capturing.__name__))
    assert "collector" in runpy.run_path(_collector.__file__)  # adapters import as before
    with pytest.raises(ValueError, match="does not tell which hidden states a forward collects") as error:
        model(X)
    assert f"transformers {transformers.__version__} " in str(error.value) and _collector.KNOWN in str(error.value)
    assert "tokenreduce.unpatch(model)" in str(error.value)


def test_the_known_versions_are_those_that_are_installed_and_tested() -> None:
    [(low, high)] = [_collector.KNOWN.removeprefix("transformers ").split(" to ")]
    assert f'\ntransformers = ["transformers>={low}"]\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\ntransformers=={high}." in (ROOT / "constraints.txt").read_text()


def test_without_the_choice_of_layers_all_are_collected(monkeypatch) -> None:
    for outputs, layers in (
        (None, set()),
        ({"router_logits": ()}, set()),
        ({"hidden_states": ()}, {0, 1, 2}),
        ({"hidden_states": (), "_hidden_states_layers": {0, 2}}, {1}),
    ):
        monkeypatch.setattr(output_capturing._active_collector, "get", lambda outputs=outputs: outputs)
        assert _collector.collected_layers(3) == layers


def test_a_chosen_layer_has_all_its_tokens() -> None:
    model = small_model()
    with torch.no_grad():
        expected = model(X, output_hidden_states=True).hidden_states
        patch(model, "tome", ratio=0.5)
        found = model(X, output_hidden_states=True).hidden_states
        unpatch(model)
    assert [state.shape for state in found] == [state.shape for state in expected]
