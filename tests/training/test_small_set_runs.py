"""Runs on small sets: places with weights, drawn tags and masks resume exactly, and are said."""

import shutil

import numpy as np
import pytest
import yaml
from conftest import age
from PIL import Image

from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.plan import plan_diffusion

SIDE = 8
UNET = {"channels": 8, "channel_multipliers": [1], "num_res_blocks": 1, "attention_levels": [0]}
TAGS = {"shuffle": True, "dropout": 0.2, "keep": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """tagged: pictures with tags and masks of their left half; named: names and no captions."""
    root = tmp_path_factory.mktemp("places")
    for folder, names in (("tagged", "abcd"), ("named", ("red_apple", "green_pear", "plum"))):
        (root / folder).mkdir()
        for k, name in enumerate(names):
            pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels + (folder == "named")).save(root / folder / f"{name}.png")
            if folder == "tagged":
                (root / f"tagged/{name}.txt").write_text("1girl, solo, hat, tree")
                mask = np.where(np.arange(SIDE) < SIDE // 2, 255, 0)[None].repeat(SIDE, 0)
                Image.fromarray(mask.astype(np.uint8)).save(root / f"tagged/{name}.mask.png")
    for path in root.rglob("*"):
        age(path)
    return root


def config(steps=4):
    return parse_config(
        DiffusionRun,
        {
            "data": {
                "resolution": SIDE,
                "validation_fraction": 0.0,
                "flip": True,
                "captions": "auto",
                "tags": TAGS,
                "mask": {"suffix": ".mask.png", "unmasked_weight": 0.1},
            },
            "unet": {**UNET, "num_heads": 2, "norm_groups": 4},
            "text": {"source": "scratch", "hidden_dim": 8, "num_layers": 1, "num_heads": 2},
            "training": {
                **{"num_steps": steps, "batch_size": 4, "precision": "float32"},
                **{"checkpoint_every": 2, "log_every": 1, "jit_compile": "off"},
            },
            "samples": {"images_per_prompt": 1, "num_steps": 1},
        },
    )


def planned(places, out, data=("tagged:2", "named"), **options):
    data = [f"{places}/{one}" for one in data]
    return plan_diffusion(config(), data, "none", out, quiet=True, **options)


def test_the_first_lines_say_captions_places_tags_and_masks(places, tmp_path):
    plan = planned(places, tmp_path / "run")
    notes = "\n".join(plan.notes)
    assert plan.run.config.data.captions == "name", "auto is settled in the run's configuration"
    for words in (
        "data.captions=name: 3 of 7 images have none",
        "named/red_apple.png: 'red apple'",
        "tagged: 4 images, weight 2, 72.7% of the examples",
        "in another order for each use, 0.2 of them left out, the first 1 stay",
        "of 4 of 7 images; the others count everywhere",
    ):
        assert words in notes, f"expected {words!r} in:\n{notes}"


@pytest.mark.slow
def test_a_run_that_resumes_has_the_weights_of_one_that_was_never_stopped(places, tmp_path):
    data = [f"{places}/tagged:2", f"{places}/named"]

    def train(out, steps, **options):
        model = train_diffusion(config(steps), data, "none", out, quiet=True, **options)
        return [*model.unet.get_weights(), *model.text_encoder.get_weights()]

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    shutil.rmtree(tmp_path / "parts/model")
    parts = train(tmp_path / "parts", 4, resume=True)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other, "expected the same bytes")
    settled = yaml.safe_load((tmp_path / "parts/config.yaml").read_text())["data"]
    assert settled["captions"] == "name", "the rule is kept, not auto"
    with pytest.raises(UserError, match=r"weights of places .*tagged:2.* → .*tagged:3"):
        planned(places, tmp_path / "parts", ("tagged:3", "named"), resume=True)
