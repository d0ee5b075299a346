"""Fetching from a stub of the Hub: the files that are read and no others, with their digests."""

import sys

import hub_stub
import pytest
from command_line import call, refused, succeeds
from tiny import quick_model, tiny_lora

import latentddpm
from latentddpm.errors import UserError
from latentddpm.hub.client import NoConnection
from latentddpm.hub.copies import RECORD
from latentddpm.hub.fetch import copy_of, fetch
from latentddpm.utils.pixels import read_metadata

JUNK = {"optimizer.pt": b"\x80\x02.", "train.py": "print('never')", "README.md": "# me"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, with a LoRA beside it."""
    folder = tmp_path_factory.mktemp("model") / "ldm"
    quick_model().save(folder)
    tiny_lora(folder / "shift.safetensors", width=16)
    return folder


@pytest.fixture(scope="module")
def hub(model):
    """A hub that tests only read."""
    with hub_stub.running() as hub:
        hub.first = hub.add("me/ldm", model)
        hub.add("me/ldm", JUNK)
        hub.add("me/secret", model, private=True)
        hub.add("you/gated", model, gated=True)
        hub.add("me/pickle", {"model.ckpt": b"\x80\x02."})
        yield hub


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    hub_stub.use(monkeypatch, hub, tmp_path / "cache")
    hub.requests.clear()
    hub.damaged.clear()
    hub.status = None
    return tmp_path / "cache"


def test_the_files_that_are_read_are_fetched_once(hub, cache, model):
    folder = fetch("hf://me/ldm")
    expected = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert set(hub.fetched()) == expected, f"expected these and no others: {expected}"
    for name in expected:
        assert (folder / name).read_bytes() == (model / name).read_bytes(), f"{name} differs"
    hub.requests.clear()
    assert fetch("hf://me/ldm") == folder, "expected the same copy"
    assert not hub.fetched(), f"expected nothing to be fetched again: {hub.fetched()}"
    assert len(hub.requests) == 1, f"expected one question for the commit: {hub.requests}"


def test_a_revision_is_a_commit(hub, cache):
    folder = fetch(f"hf://me/ldm@{hub.first}")
    assert folder.name == hub.first, f"expected the copy of that commit, got {folder}"
    hub.requests.clear()
    assert fetch(f"hf://me/ldm@{hub.first}") == folder, "expected the same copy"
    assert not hub.requests, f"a commit does not change, so nothing is asked: {hub.requests}"


def test_a_copy_that_lost_a_file_is_fetched_again(hub, cache):
    folder = fetch("hf://me/ldm")
    (folder / "unet.keras").unlink()
    assert copy_of("hf://me/ldm") is None, "expected no whole copy"
    fetch("hf://me/ldm")
    assert (folder / "unet.keras").is_file(), "expected the file to be back"
    assert copy_of("hf://me/ldm") == folder, "expected a whole copy"


@pytest.mark.parametrize("name", ["unet.keras", "pipeline.json"])
def test_a_damaged_file_is_refused_and_removed(hub, cache, name):
    """Of a large file the Hub tells the SHA-256, of a small one git's SHA-1."""
    hub.damaged.add(name)
    with pytest.raises(UserError, match=rf"{name} has another SHA-\d+: it was damaged"):
        fetch("hf://me/ldm")
    hub.damaged.clear()
    assert (fetch("hf://me/ldm") / name).is_file(), "expected it to be fetched anew"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://me/nothing", "no such model, or a private one: log in with: hf auth login"),
        ("hf://me/secret", "no such model, or a private one: log in with: hf auth login"),
        ("hf://you/gated", "is gated; accept its terms on its page of the Hub"),
        ("hf://me/ldm@v9", "no revision 'v9'; it has main"),
        ("hf://me/ldm@mian", r"no revision 'mian' .did you mean 'main'"),
        ("hf://me/pickle", "model.ckpt is a pickle, which can run code and is never fetched"),
        ("hf://me/ldm/train.py", "train.py is code, which is never fetched"),
        ("hf://datasets/me/ldm", "is a data set; name it with --data"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(hub, cache, address, words):
    with pytest.raises(UserError, match=words) as caught:
        fetch(address)
    assert "\n" not in str(caught.value), f"expected one line: {caught.value}"
    assert not hub.fetched(), f"expected nothing to be fetched: {hub.fetched()}"


def test_who_is_logged_in_reads_private_models(hub, cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    assert (fetch("hf://me/secret") / "pipeline.json").is_file(), "expected the model"
    with pytest.raises(UserError, match="or a private one that your account may not read"):
        fetch("hf://me/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(UserError, match="the Hub refuses the token; log in with"):
        fetch("hf://me/ldm")


@pytest.mark.parametrize("way", ["refused", "offline", "broken", "busy"])
def test_without_the_hub_a_whole_copy_is_used(hub, cache, way, monkeypatch, capsys):
    from huggingface_hub import constants

    folder = fetch("hf://me/ldm")
    if way == "refused":
        hub_stub.use(monkeypatch, "http://127.0.0.1:9", cache)
    elif way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.status = 503 if way == "broken" else 429
    assert fetch("hf://me/ldm") == folder, f"{way}: expected the copy"
    said = capsys.readouterr().err
    assert f"the copy of hf://me/ldm@{folder.name[:7]} is used" in said, (
        f"expected it said: {said}"
    )
    with pytest.raises(NoConnection, match="hf://me/other: ") as caught:
        fetch("hf://me/other")
    assert "\n" not in str(caught.value), f"expected one line: {caught.value}"
    (folder / "unet.keras").unlink()
    with pytest.raises(NoConnection):
        fetch("hf://me/ldm")


def test_a_damaged_record_is_written_anew(hub, cache):
    folder = fetch("hf://me/ldm")
    record = folder.parents[1] / RECORD
    record.write_text("[1, 2", "utf-8")
    assert fetch("hf://me/ldm") == folder, "expected the copy"
    assert copy_of("hf://me/ldm") == folder, "expected the record to be whole again"


def test_python_and_the_command_load_from_the_hub(hub, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = latentddpm.LatentDiffusion.load("hf://me/ldm")
    assert loaded.digest == latentddpm.LatentDiffusion.load(cache_of(cache)).digest, "another"
    line = ("generate", "--prompt", "red apple", "--seed", 3, "--steps", 2)
    lora = "hf://me/ldm/shift.safetensors:0.5"
    done = succeeds(call(*line, "--model", "hf://me/ldm", "--lora", lora, "--out", "a.png"))
    assert "using hf://me/ldm@" in done.stderr, f"expected the commit said: {done.stderr}"
    metadata = read_metadata(tmp_path / "a.png")
    commit = cache_of(cache).name
    assert metadata["model"] == f"hf://me/ldm@{commit}", f"expected the address: {metadata}"
    (trace,) = metadata["loras"]
    assert trace["file"] == f"hf://me/ldm@{commit}/shift.safetensors", f"got {trace}"
    hub.requests.clear()
    succeeds(call("generate", "--from", "a.png", "--out", "b.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes(), "another image"
    hub_stub.use(monkeypatch, hub, tmp_path / "another machine")
    done = call("generate", "--from", "a.png", "--out", "c.png")
    refused(done, "a.png: was made with hf://me/ldm@", f"--model {metadata['model']}")
    assert not hub.requests, f"anyone can write a PNG, and the Hub was asked: {hub.requests}"


def cache_of(cache):
    """The only snapshot of the model."""
    (folder,) = (cache / "models--me--ldm" / "snapshots").iterdir()
    return folder


def test_the_command_refuses_in_one_line(hub, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(call("info", "hf://me/nothing"), "hf://me/nothing: no such model")
    refused(call("generate", "--model", "hf://nothing"), "expected hf://owner/name")
    hub_stub.use(monkeypatch, "http://127.0.0.1:9", cache)
    done = call("generate", "--model", "hf://me/ldm", "--prompt", "x")
    refused(done, "hf://me/ldm: the Hub does not answer", "or name a folder", code=1)


def test_a_repository_cannot_write_elsewhere(hub, cache):
    hub.add("me/escape", {"../../pipeline.json": "{}"})
    with pytest.raises(UserError, match=r"names a file '\.\./\.\./pipeline\.json'; refused"):
        fetch("hf://me/escape")
    assert not hub.fetched(), "expected nothing to be fetched"


def test_without_the_package_it_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "latentddpm\[hub\]"'):
        fetch("hf://me/ldm")
