"""All stages train, can be cut off and resumed, and what is shipped is what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.see import PATCHES, Drawn, Namer, Right, SeeSettings, halves, named_loss, see
from recipes.smol_llava.ship import difference_name, pack, ship, take_back, unpack
from recipes.smol_llava.slots import GROUND, Lexicon
from recipes.smol_llava.talk import TalkSettings, begin, build, talk
from recipes.smol_llava.tell import KINDS, TOWER, Teller, TellSettings, length_loss, tell, told_loss
from serving import embedded

SMALL: dict[str, Any] = {"batch_size": 4, "workers": 0, "save_every": 1, "compiled": False}


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stages 1 and 1b were trained for two steps each, cut off after the first."""
    out = tmp_path_factory.mktemp("training")
    for steps in (1, 2):
        see(cache, out, SeeSettings(steps=steps, **SMALL))
    for steps in (1, 2):
        tell(cache, out, TellSettings(steps=steps, **SMALL))
    return out


def test_a_stage_goes_on_from_its_checkpoint(cache: Path, trained: Path) -> None:
    """A run of a stage that is done does nothing, and one that was cut off has done the missing steps only."""
    for stage in ("see", "tell"):
        assert torch.load(trained / f"{stage}.pt", weights_only=True)["step"] == 2
    before = (trained / "see.pt").stat().st_mtime_ns
    see(cache, trained, SeeSettings(steps=2, **SMALL))
    assert (trained / "see.pt").stat().st_mtime_ns == before


def test_stage_1b_begins_where_stage_1_ended(cache: Path, trained: Path, tmp_path: Path) -> None:
    """Its first blocks and its names of patches are those of stage 1, and its further blocks change nothing yet."""
    shutil.copyfile(trained / "see.pt", tmp_path / "see.pt")
    tell(cache, tmp_path, TellSettings(steps=1, learning_rate=0.0, **SMALL))
    begun = torch.load(tmp_path / "tell.pt", weights_only=True)["model"]
    done = torch.load(trained / "see.pt", weights_only=True)["model"]
    assert all(torch.equal(begun[name], weight) for name, weight in done.items())
    for block in range(6, TOWER.num_hidden_layers):
        for name in ("self_attn.out_proj", "mlp.fc2"):
            assert not begun[f"tower.encoder.layers.{block}.{name}.weight"].any()


def test_stage_2_begins_with_tower_and_projector_of_stage_1b(trained: Path) -> None:
    """Both parts are handed on whole."""
    model, _ = build()
    begin(model, trained)
    inner = model.get_base_model().model
    told = torch.load(trained / "tell.pt", weights_only=True)["model"]
    assert torch.equal(
        inner.vision_tower.embeddings.class_embedding, told["tower.embeddings.class_embedding"]
    )
    assert torch.equal(inner.multi_modal_projector.linear_2.bias, told["projector.linear_2.bias"])


def test_what_is_shipped_is_what_was_trained(tmp_path: Path) -> None:
    """Weights under PEFT's names arrive in bf16 under the names that assembling reads, and can be taken back."""
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    weights = {
        "base_model.model.model.vision_tower.embeddings.class_embedding": torch.randn(256),
        f"{layer}.lora_A.default.weight": torch.randn(16, 576),
        f"{layer}.lora_B.default.weight": torch.randn(576, 16),
    }
    torch.save({"model": weights}, tmp_path / "talk.pt")
    shutil.copyfile(embedded.PARTS / "config.json", tmp_path / "config.json")
    ship(tmp_path, tmp_path)
    vision, language = load_file(tmp_path / embedded.VISION), load_file(tmp_path / embedded.LANGUAGE)
    assert set(vision) == {"vision_tower.embeddings.class_embedding"}
    assert set(language) == {"model.layers.0.self_attn.q_proj.A", "model.layers.0.self_attn.q_proj.B"}
    assert torch.equal(
        language["model.layers.0.self_attn.q_proj.A"], weights[f"{layer}.lora_A.default.weight"].bfloat16()
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["num_hidden_layers"] == TOWER.num_hidden_layers
    assert config["image_seq_length"] == 36
    assert set(json.loads((tmp_path / "parts.json").read_text())) == {embedded.VISION, embedded.LANGUAGE}
    take_back(tmp_path / "again", tmp_path)
    again = torch.load(tmp_path / "again" / "talk.pt", weights_only=True)["model"]
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight.bfloat16().float()) for name, weight in weights.items())


def test_assembling_adds_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned matrix is W + s B A, rounded once; the others stay bit for bit."""
    a, b = torch.randn(4, 8).bfloat16(), torch.randn(6, 4).bfloat16()
    save_file({"model.x.A": a, "model.x.B": b}, tmp_path / embedded.LANGUAGE, metadata={"scale": "2.0"})
    monkeypatch.setattr(embedded, "PARTS", tmp_path)
    plain = {
        name: torch.randn(6, 8).bfloat16()
        for name in ("language_model.model.x.weight", "language_model.model.y.weight")
    }
    tuned = embedded.tuned(dict(plain))
    expected = (plain["language_model.model.x.weight"].double() + 2 * b.double() @ a.double()).bfloat16()
    assert torch.allclose(
        tuned["language_model.model.x.weight"].float(), expected.float(), rtol=1e-2, atol=1e-3
    )
    assert not torch.equal(tuned["language_model.model.x.weight"], plain["language_model.model.x.weight"])
    assert torch.equal(tuned["language_model.model.y.weight"], plain["language_model.model.y.weight"])


def test_names_of_the_difference_are_those_of_the_checkpoint() -> None:
    """PEFT's name of a matrix becomes that of the module in the assembled checkpoint."""
    name = "base_model.model.model.language_model.layers.7.mlp.up_proj.lora_B.default.weight"
    assert difference_name(name) == "model.layers.7.mlp.up_proj.B"


def test_stage_2_trains_all_three_parts_and_resumes(cache: Path, trained: Path) -> None:
    """Two steps, cut off after the first, move all three parts; what is shipped of them can be trained further."""
    (trained / "chats.json").write_text(json.dumps([["Hello!", "Hi there."]] * 2), encoding="utf-8")
    common: dict[str, Any] = {
        "tokens": 160, "text_every": 2, "text_rows": 1, "chats": 2, "workers": 0, "save_every": 1, "warmup_steps": 1,
        "compiled": False,
    }  # fmt: skip
    start = torch.load(trained / "tell.pt", weights_only=True)["model"]
    for steps in (1, 2):
        talk(cache, trained, TalkSettings(steps=steps, **common))
    state = torch.load(trained / "talk.pt", weights_only=True)
    assert state["step"] == 2
    weights = {name.removeprefix("base_model.model.model."): one for name, one in state["model"].items()}
    for old, new in (("projector.", "multi_modal_projector."), ("tower.", "vision_tower.")):
        moved = [
            not torch.equal(tensor, weights[new + name.removeprefix(old)])
            for name, tensor in start.items()
            if name.startswith(old)
        ]
        assert any(moved), new
    assert any(one.any() for name, one in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("stage", ["see", "tell"])
def test_a_stage_goes_on_from_what_was_packed(cache: Path, trained: Path, tmp_path: Path, stage: str) -> None:
    """What was packed in bf16 is where training begins again, at its first step."""
    pack(trained, stage, tmp_path / "packed")
    unpack(tmp_path, tmp_path / "packed")
    begun = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
    done = torch.load(trained / f"{stage}.pt", weights_only=True)["model"]
    assert begun["step"] == 0
    assert all(torch.equal(begun["model"][name], one.bfloat16().float()) for name, one in done.items())
    if stage == "see":
        see(cache, tmp_path, SeeSettings(steps=1, **SMALL))
    else:
        tell(cache, tmp_path, TellSettings(steps=1, **SMALL))
    assert torch.load(tmp_path / f"{stage}.pt", weights_only=True)["step"] == 1


def test_what_was_trained_is_not_written_over(trained: Path, tmp_path: Path) -> None:
    """Where a stage has a checkpoint, neither shipped nor packed weights are put, and the message says what to do."""
    pack(trained, "see", tmp_path / "packed")
    before = (trained / "see.pt").read_bytes()
    said = r"see\.pt is there already\. Name another directory with --work"
    with pytest.raises(FileExistsError, match=said):
        unpack(trained, tmp_path / "packed")
    with pytest.raises(FileExistsError, match=said):
        take_back(trained)
    assert (trained / "see.pt").read_bytes() == before


@pytest.fixture(scope="module")
def teller(processor: Any) -> Teller:
    """A tower and a projector that point at a few words, untrained."""
    torch.manual_seed(0)
    return Teller(torch.randn(49153, 576), Lexicon.of(processor.tokenizer, ["red apple"]))


def test_image_tokens_that_are_embeddings_say_their_words(teller: Teller) -> None:
    """Where image tokens are the embeddings of a caption, the loss is almost nothing and everything counts as right."""
    wanted = torch.randint(0, len(teller.wanted), (2, PATCHES))
    image = teller.mean + teller.length * teller.wanted[wanted]
    right, kinds = Right(KINDS), torch.tensor([0, 0])
    assert float(told_loss(teller, image, wanted, 0.1, right, kinds)) < 1e-3
    assert right.counts[0] == pytest.approx([2, 2, 2])
    assert float(length_loss(teller, image)) < 1e-9
    assert float(length_loss(teller, 2 * image - teller.mean)) == pytest.approx(1, rel=1e-3)
    assert float(told_loss(teller, image.flip(1), wanted, 0.1, Right(KINDS), kinds)) > 5


def test_a_place_where_nothing_is_said_counts_less(teller: Teller) -> None:
    """Errors where nothing is said are learned from in a tenth of the cases, at half the weight."""
    torch.manual_seed(1)
    wanted, kinds = torch.zeros(40, PATCHES, dtype=torch.long), torch.zeros(40, dtype=torch.long)
    wanted[:, 0] = 1
    image = teller.mean + teller.length * teller.wanted[torch.full_like(wanted, 1)]
    loss = told_loss(teller, image, wanted, 0.1, Right(KINDS), kinds)
    wrong = told_loss(teller, image, torch.full_like(wanted, 2), 0.1, Right(KINDS), kinds)
    expected = 0.1 * 35 * 0.5 / (1 + 0.1 * 35 * 0.5)
    assert float(loss / wrong) == pytest.approx(expected, rel=0.1)


def test_a_patch_may_have_any_of_its_words(processor: Any) -> None:
    """A patch that is given one of two words at even odds costs what that choice must, ln 2, and counts as right."""
    lexicon = Lexicon.of(processor.tokenizer, ["red apple"])
    ground, red, apple = (lexicon.say(word)[0] for word in (GROUND, "red", "apple"))
    naming = torch.nn.Linear(2, len(lexicon.tokens))
    with torch.no_grad():
        naming.weight.zero_()
        naming.bias.fill_(-30.0)
        naming.bias[[red, apple]] = 0.0
    words = torch.tensor([[[red, apple, -1, -1], [ground, -1, -1, -1]]])
    right = Right(KINDS)
    loss = named_loss(naming, torch.zeros(1, 2, 2), words, ground, 0.0, right, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)
    assert right.counts[0] == pytest.approx([1, 1, 1])


def test_a_picture_may_be_shown_several_times(cache: Path, artist: Artist, processor: Any) -> None:
    """Every third picture is new, the others have been shown before."""
    concepts = artist.sprites.concepts
    names = {text for one in concepts for text in (one.name, one.subgroup)}
    drawn = iter(Drawn(cache, Lexicon.of(processor.tokenizer, names), {"shapes": 1.0}, "seed", shown=3))
    shown = [next(drawn)[1].numpy().tobytes() for _ in range(30)]
    assert len(set(shown)) == 10
    assert len(set(shown[::3])) == 10


def test_a_new_tower_looks_at_what_is_near() -> None:
    """Before any training, a patch attends to itself and to its neighbour more than to the far corner."""
    torch.manual_seed(0)
    tower = Namer(3).tower
    pixels = torch.zeros(1, 3, 96, 96)
    attention = tower(pixels, output_attentions=True).attentions[0].mean(1)[0, 1:, 1:]
    for patch, neighbour, far in ((0, 1, 35), (14, 15, 35), (35, 29, 0)):
        assert attention[patch, patch] > attention[patch, far]
        assert attention[patch, neighbour] > attention[patch, far]


def test_a_product_is_halved() -> None:
    """Both halves together are the product when the rank is full, and its best approximation when not."""
    product = torch.randn(8, 8, dtype=torch.float64)
    left, right = halves(product, 8)
    assert torch.allclose(left @ right.T, product)
    left, right = halves(product, 3)
    sizes = torch.linalg.svdvals(product)
    assert float((left @ right.T - product).norm()) == pytest.approx(float(sizes[3:].norm()))
