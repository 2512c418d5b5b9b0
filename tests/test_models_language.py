"""Language models: causal, scored behind their context, truncated there, saved and loaded; Hugging Face's too."""

import copy

import pytest
import torch
import torch.fx
from torch import nn

from protege.data import load_data
from protege.errors import UserError
from protege.models import Model, check_classes, count_macs, load_model

SPECS = [
    "zoo:lstm?hidden=8",
    "zoo:lstm?hidden=8&embedding=6&tied=true&layers=1",
    "zoo:lstm_medium?hidden=8&layers=3",
    "zoo:gpt_tiny?width=8&heads=2&length=20",
]
WORDS = 13


def made(spec: str) -> Model:
    torch.manual_seed(0)
    return load_model(spec, num_classes=WORDS).double().eval()


def text(folder, lines: int = 60):
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_text("one two three four\n" * lines)
    return f"text:{folder}?length=8&context=4"


@pytest.mark.parametrize("spec", SPECS)
def test_no_word_sees_a_later_one(spec) -> None:
    model, tokens = made(spec), torch.randint(0, WORDS, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % WORDS
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 12, WORDS)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-12)
    assert (before[:, 7:] != after[:, 7:]).any(2).all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("context", [1, 5])
def test_the_context_is_read_and_not_scored(spec, context) -> None:
    model, tokens = made(spec), torch.randint(0, WORDS, (3, 12))
    whole = model(tokens)
    model.network.context = context
    assert torch.allclose(model(tokens), whole[:, context:], atol=1e-12)


def test_the_gradient_is_truncated_at_the_block() -> None:
    model = made("zoo:lstm?hidden=8")
    model.network.context = 4
    tokens = torch.arange(12)[None]  # every token stands once, so its embedding's gradient tells where it came from
    model(tokens).square().sum().backward()
    reached = model.network.embed.weight.grad.abs().sum(1) > 0
    assert not reached[:4].any()
    assert reached[4:12].all()


def test_a_long_context_is_as_good_as_a_stream() -> None:
    """State carried over the whole text, against blocks that bring their context."""
    model = made("zoo:lstm?hidden=8")
    network, tokens = model.network, torch.randint(0, WORDS, (1, 300))
    carried = network(tokens)[:, 200:]
    network.context = 60
    blocks = torch.cat([network(tokens[:, start - 60 : start + 20]) for start in range(200, 300, 20)], 1)
    assert (carried - blocks).abs().max() < 1e-6 * carried.abs().max()


def test_the_graph_of_a_transformer_can_be_traced() -> None:
    model, tokens = made(SPECS[3]), torch.randint(0, WORDS, (2, 9))
    traced = torch.fx.symbolic_trace(model.network)
    assert torch.allclose(traced(tokens), model(tokens), atol=1e-12)


def test_dropout_is_off_in_eval_mode_and_on_in_train_mode() -> None:
    model, tokens = made("zoo:lstm_medium?hidden=8"), torch.randint(0, WORDS, (2, 9))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_runs_under_autocast_with_a_gradient() -> None:
    model = made("zoo:lstm?hidden=8").float().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randint(0, WORDS, (2, 9)))
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_saved_and_loaded(spec, tmp_path) -> None:
    model, tokens = made(spec).float(), torch.randint(0, WORDS, (2, 9))
    model.network.context = 3
    again = load_model(model.save(tmp_path / "model"))
    assert again.input.kind == "tokens"
    assert len(again.classes) == WORDS
    assert torch.equal(again(tokens)[:, 3:], model(tokens)) or torch.allclose(
        again(tokens)[:, 3:], model(tokens), atol=1e-6
    )
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_tied_weights_stay_tied_in_a_copy_and_after_loading(tmp_path) -> None:
    for spec in (SPECS[1], SPECS[3]):
        model = made(spec)
        for one in (model, copy.deepcopy(model), load_model(model.save(tmp_path / spec[4:8]))):
            assert one.network.head.weight is one.network.embed.weight


@pytest.mark.parametrize("tied", ["true", "false"])
def test_multiply_adds_of_an_lstm(tied) -> None:
    model = load_model(f"zoo:lstm?hidden=8&embedding=6&layers=2&tied={tied}", num_classes=WORDS)
    read, scored = 9, 5
    model.network.context = read - scored
    layers = read * 4 * 8 * (6 + 8 + 8 + 8)
    head = scored * (8 * 6 + 6 * WORDS if tied == "true" else 8 * WORDS)
    assert count_macs(model, torch.zeros(4, read, dtype=torch.int64)) == layers + head


def test_a_module_of_ones_own_learns_text(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    network = nn.Sequential(nn.Embedding(len(data.classes), 4), nn.Linear(4, len(data.classes)))
    model = load_model(network, data=data)
    check_classes(model, data)
    assert model.task == "language"
    assert model.classes == data.classes


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"width 10 is not a multiple of heads 4"):
        load_model("zoo:gpt_tiny?width=10", num_classes=9)
    with pytest.raises(UserError, match=r"no argument 'hiden'; did you mean 'hidden'"):
        load_model("zoo:lstm?hiden=10", num_classes=9)


# ---- Hugging Face -------------------------------------------------------------------------------------------------


def hugging(folder, words: int, **settings) -> str:
    """A tiny GPT-2 on disk, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=words, **small, **settings)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return f"transformers:{folder}"


def tokenizer(folder, words: dict[str, int]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(folder)


VOCABULARY = {"<unk>": 0, "<eos>": 1, "one": 2, "two": 3, "three": 4, "four": 5}


def test_a_causal_model_scores_behind_its_context_and_is_saved_whole(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    spec = hugging(tmp_path / "gpt2", len(data.classes))
    model = load_model(spec, data=data).eval()
    check_classes(model, data)
    tokens = torch.randint(0, len(data.classes), (2, 12))
    whole = model.network.model(input_ids=tokens).logits
    assert model.network.context == 4
    assert torch.allclose(model(tokens), whole[:, 4:], atol=1e-6)
    saved = model.save(tmp_path / "student")
    (tmp_path / "gpt2").rename(tmp_path / "gone")  # the folder it came from is not needed any more
    again = load_model(saved)
    check_classes(again, data)
    assert torch.allclose(again(tokens), model(tokens), atol=1e-6)
    assert again.classes == data.classes


def test_a_fresh_student_of_the_same_family(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    spec = hugging(tmp_path / "gpt2", 50)
    model = load_model(f"{spec}?pretrained=false&n_embd=4", data=data)
    check_classes(model, data)
    assert model.network.model.config.n_embd == 4
    tokenizer(tmp_path / "gpt2", {**VOCABULARY, "one": 3, "two": 2})  # whose words fresh weights do not know
    check_classes(load_model(f"{spec}?pretrained=false&n_embd=4", data=data), data)
    with pytest.raises(UserError, match=r"n_embd=4, which needs fresh weights; add pretrained=false"):
        load_model(f"{spec}?n_embd=4", data=data)
    with pytest.raises(UserError, match=r"has no setting 'n_embed'"):
        load_model(f"{spec}?pretrained=false&n_embed=4", data=data)


def test_teacher_and_text_share_a_tokenizer_or_are_refused(tmp_path) -> None:
    place = text(tmp_path / "text")
    spec = hugging(tmp_path / "gpt2", 8)  # a vocabulary padded to a round number
    tokenizer(tmp_path / "gpt2", VOCABULARY)
    data = load_data(f"{place}&tokenizer={tmp_path / 'gpt2'}")
    assert data.classes == tuple(VOCABULARY)
    assert data.train.fetch(torch.tensor([0]), -1, data.augment).labels[0, :5].tolist() == [2, 3, 4, 5, 2]
    check_classes(load_model(spec, data=data), data)
    tokenizer(tmp_path / "other", {**VOCABULARY, "one": 3, "two": 2})
    other = load_data(f"{place}&tokenizer={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"another vocabulary than the data, as word 2 is 'one' there and 'two' here"):
        check_classes(load_model(spec, data=other), other)


def test_refusals_of_causal_models(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    spec = hugging(tmp_path / "gpt2", 50)
    with pytest.raises(UserError, match=r"the model knows 50 words but the data's vocabulary has 6"):
        check_classes(load_model(spec, data=data), data)
    with pytest.raises(UserError, match=r"takes text but the data is images"):
        load_model(spec, data=load_data("digits"))
    long = load_data(text(tmp_path / "long").replace("length=8", "length=40"))
    with pytest.raises(UserError, match=r"44 tokens are more than its 32 positions"):
        check_classes(load_model(hugging(tmp_path / "same", 6), data=long), long)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"transformers:.*empty cannot be opened"):
        load_model(f"transformers:{tmp_path / 'empty'}", data=data)
    with pytest.raises(UserError, match=r"tokenizer '.*empty' cannot be opened"):
        load_data(f"{text(tmp_path / 'text')}&tokenizer={tmp_path / 'empty'}")
