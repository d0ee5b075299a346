"""Runs that are kept among their data."""

import json

import nasty
import yaml
from command_line import VAE_CONFIG, call, succeeds
from tiny import step_by_step

SIZES = {"channels": 4, "channel_multipliers": [1], "num_res_blocks": 1, "norm_groups": 2}


def test_a_run_inside_its_data_trains_and_resumes(tmp_path, monkeypatch):
    """Its sample grids, catalog and model are there by then, and are no data."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        (tmp_path / "d").mkdir(exist_ok=True)
        data = nasty.encoded(nasty.solid("RGB", (40 * number, 0, 9), 8), "PNG")
        (tmp_path / f"d/{number}.png").write_bytes(data)
    steps = {"num_steps": 2, "batch_size": 2, "validate_every": 1, "checkpoint_every": 1}
    config = {
        "data": {"resolution": 8, "validation_fraction": 0.5},
        "autoencoder": SIZES,
        "training": {**VAE_CONFIG["training"], **steps},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    line = ["train-vae", "--config", "c.yaml", "--data", "d", "--out", "d/run"]
    with step_by_step():
        succeeds(call(*line, "--set", "training.num_steps=1"))
        grids = list((tmp_path / "d/run/samples").glob("*.png"))
        assert grids, "the test needs a sample grid among the data"
        again = succeeds(call(*line, "--resume"))
    assert "made by latentddpm, not read as data" in again.stderr, f"not named: {again.stderr}"
    log = (tmp_path / "d/run/log.jsonl").read_text().splitlines()
    steps = [json.loads(one)["step"] for one in log]
    assert max(steps) == 2, f"expected the run to go on from step 1: {steps}"
    report = json.loads(succeeds(call("doctor", "d", "--json", "--quiet")).stdout)
    assert report["images"] == 6, "doctor reads work of ours as data"
