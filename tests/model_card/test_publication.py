"""`push`: exactly what readers open is sent, with a licence that somebody named, to a stub Hub."""

import hub_stub
import pytest
from command_line import call, refused, succeeds
from tiny import quick_model, tiny_lora

from latentddpm.hub.fetch import fetch
from latentddpm.model_card.card import is_own
from latentddpm.pipeline.model_folder import read_model_folder

TOKEN = hub_stub.TOKEN
# Of huggingface_hub's own call of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a model, beside things that are nobody's business."""
    run = tmp_path_factory.mktemp("finished") / "mine"
    quick_model().save(run / "model")
    for name in ("log.jsonl", "checkpoints/step-1/state.safetensors", "model/notes.docx"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"")
    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_stub.running() as hub:
        hub_stub.use(monkeypatch, hub, tmp_path / "cache", TOKEN)
        yield hub


@pytest.fixture
def card(finished):
    """The place of a card, which is gone before and after."""
    place = finished / "model" / "README.md"
    place.unlink(missing_ok=True)
    yield place
    place.unlink(missing_ok=True)


def files(hub, name="me/mine", ref="main"):
    repository = hub.repositories["models", name]
    return {k: v for k, v in repository.commits[repository.refs[ref]].items() if k[0] != "."}


def test_a_model_comes_back_as_it_was_sent(hub, finished, card):
    done = succeeds(call("push", finished, "me/mine", "--license", "mit"))
    commit = hub.repositories["models", "me/mine"].refs["main"]
    assert done.stdout.strip() == f"hf://me/mine@{commit}", f"expected the commit: {done.stdout}"
    sent = files(hub)
    folder = read_model_folder(finished)
    for part in folder.parts.values():
        data = (folder.path / part["file"]).read_bytes()
        assert sent[part["file"]] == data, f"expected {part['file']} as it is"
    odd = [name for name in sent if not name.endswith((".keras", ".json", ".onnx", ".md", ".txt"))]
    assert not odd, f"expected what readers open and no more, got {odd}"
    text = sent["README.md"].decode()
    assert "license: mit" in text, f"expected the licence in\n{text}"
    assert "--model hf://me/mine" in text, f"expected the address in\n{text}"
    assert is_own(card.read_text("utf-8")), "expected a card beside the model"
    assert read_model_folder(fetch("hf://me/mine")).digest == folder.digest, "another model"


def test_a_dry_run_sends_and_writes_nothing(hub, finished, card):
    done = succeeds(call("push", finished, "me/mine", "--license", "mit", "--dry-run"))
    assert not hub.requests, f"expected nothing to be asked, got {hub.requests}"
    assert not card.exists(), "expected no card to be written"
    *lines, whole = done.stdout.splitlines()
    size = (finished / "model" / "unet.keras").stat().st_size / 1000
    assert f"{size:>5.3g} kB  unet.keras" in lines, f"expected sizes of files, got {lines}"
    assert whole.endswith(f"in {len(lines)} files to hf://me/mine, licence mit"), f"got {whole}"


def test_a_branch_and_a_private_repository(hub, finished, card):
    line = ("push", finished, "me/mine", "--license", "mit")
    succeeds(call(*line, "--private", "--revision", "v2"))
    assert hub.repositories["models", "me/mine"].private, "expected a private repository"
    assert "unet.keras" in files(hub, ref="v2"), "expected the model in the branch"
    assert "unet.keras" not in files(hub), "expected nothing in the main branch"
    hub.add("me/open", {"README.md": ""})
    done = call("push", finished, "me/open", "--license", "mit", "--private")
    refused(done, "hf://me/open: is there and public")
    assert "unet.keras" not in files(hub, "me/open"), "expected nothing to be sent"


def test_a_persons_card_is_sent_as_it_is(hub, finished, card):
    text = "---\nlicense: cc-by-4.0\n---\n# Mine\nBy hand: MODEL.\n"
    card.write_text(text, "utf-8")
    succeeds(call("push", finished, "me/mine"))
    assert files(hub)["README.md"].decode() == text, "expected the card as it was written"
    assert card.read_text("utf-8") == text, "expected it untouched"
    done = call("push", finished, "me/mine", "--license", "mit")
    refused(done, "says cc-by-4.0", "a card of yours is not changed", "license: mit")


def test_a_card_that_was_written_on_the_hub_is_kept(hub, finished, card):
    hub.add("me/mine", {"README.md": "---\nlicense: mit\n---\n# Written there\n"})
    done = succeeds(call("push", finished, "me/mine", "--license", "mit"))
    assert "was written by a person, and is kept" in done.stderr, f"expected it said: {done}"
    assert b"Written there" in files(hub)["README.md"], "a person's card was overwritten"
    hub.add("me/bare", {"README.md": "---\nlicense: mit\n---\n"})
    succeeds(call("push", finished, "me/bare", "--license", "mit"))
    assert b"## Limits" in files(hub, "me/bare")["README.md"], "expected a card for an empty one"


def test_a_lora_is_sent_alone(hub, tmp_path):
    (tmp_path / "style").mkdir()
    tiny_lora(tmp_path / "style" / "lora.safetensors")
    (tmp_path / "style" / "log.jsonl").touch()
    succeeds(call("push", tmp_path / "style", "me/style", "--license", "mit"))
    assert sorted(files(hub, "me/style")) == ["README.md", "lora.safetensors"], "expected two"
    found = fetch("hf://me/style")
    assert found.name == "lora.safetensors", f"expected its file, as --lora takes it: {found}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("me/mine",), ["under which licence? Name it with --license, such as apache-2.0"]),
        (("me/mine", "--license", "My own"), ["'My own' is no identifier such as apache-2.0"]),
        (("mine", "--license", "mit"), ["expected hf://owner/name"]),
        (("me/mine/x", "--license", "mit"), ["expected owner/name alone, without a path"]),
        (("you/mine", "--license", "mit"), ["hf://you/mine: your token may not write it"]),
    ],
)
def test_what_cannot_be_sent_is_said(hub, finished, card, arguments, words):
    refused(call("push", finished, *arguments), *words)
    assert not card.exists(), "expected nothing to be written"


def test_nothing_is_sent_by_nobody(hub, finished, card, monkeypatch):
    line = ("push", finished, "me/mine", "--license", "mit")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    refused(call(*line), "hf://me/mine: the Hub refuses the token; log in with: hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    refused(call(*line), "nobody is logged in; log in with: hf auth login (or set HF_TOKEN)")
    assert not hub.requests, "expected no question without a token"
    options = {name for one in call("push", "--help").stdout.split() for name in [one]}
    assert not any("token" in name for name in options if name.startswith("--")), "a token option"


def test_a_damaged_model_and_a_hub_that_is_gone(hub, finished, card, tmp_path, monkeypatch):
    line = ("push", finished, "me/mine", "--license", "mit")
    hub_stub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", TOKEN)
    refused(call(*line), "hf://me/mine: the Hub does not answer", code=1)
    hub_stub.use(monkeypatch, hub, tmp_path / "cache", TOKEN)
    hub.full = True
    refused(call(*line), "hf://me/mine: the Hub answers 507", code=1)
    assert not card.exists(), "expected nothing to be written"
    file = finished / "model" / "unet.keras"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(call(*line), "unet.keras: is not the file pipeline.json describes")
    file.write_bytes(data)
    refused(call("push", tmp_path / "none", "me/x", "--license", "mit"), "no such model folder")
