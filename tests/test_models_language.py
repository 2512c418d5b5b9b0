"""Language models: causal, scored behind their context, truncated there, saved and loaded; Hugging Face's too."""

import copy

import pytest
import torch
import torch.fx
from torch import nn

from protege import diagnose, distill, evaluate, train
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


# ---- what outputs stand for -----------------------------------------------------------------------------------------


class Own(nn.Module):
    """An embedding, `layer` over [B, L, 8], a linear layer, and `shape` of what it gives."""

    def __init__(self, words: int, layer=lambda x: x, shape=lambda outputs: outputs) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 8), nn.Linear(8, words)
        self.layer, self.shape = layer, shape

    def forward(self, tokens):
        return self.shape(self.head(self.layer(self.embed(tokens))))


class Recurrent(nn.Module):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8 // (1 + settings.get("bidirectional", False)), **settings)

    def forward(self, x):
        return self.lstm(x)[0]


class Attention(nn.Module):
    def __init__(self, masked: bool, gate: float = 1.0) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.masked = nn.Parameter(torch.full((), gate)), masked

    def forward(self, x):
        length = x.shape[1]
        mask = torch.ones(length, length).triu(1).bool() if self.masked else None
        return x + self.gate * self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]


class Convolution(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.pad, self.conv, self.norm = nn.ConstantPad1d((before, after), 0.0), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(self.pad(x.transpose(1, 2))))).transpose(1, 2)


class Remembering(nn.Module):
    """Carries its state from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.state = nn.GRU(8, 8, batch_first=True), None

    def forward(self, x):
        if self.state is not None and self.state.shape[1] != len(x):
            self.state = None
        out, state = self.gru(x, self.state)
        self.state = state.detach()
        return out


def both_ways_over_the_context(x):
    read = x[:, :4].mean(1, keepdim=True).expand(-1, 4, -1)
    return torch.cat([read, x[:, 4:]], 1)


CAUSAL = {
    "convolution padded on the left": lambda words: Own(words, Convolution(2, 0)),
    "masked attention": lambda words: Own(words, Attention(True)),
    "LSTM": lambda words: Own(words, Recurrent(batch_first=True)),
    "half precision": lambda words: Own(words, Recurrent(batch_first=True)).bfloat16(),
    "dropout in every mode": lambda words: Own(words, lambda x: nn.functional.dropout(x, 0.5)),
    "state that is kept": lambda words: Own(words, Remembering()),
    "only what is scored": lambda words: Own(words, shape=lambda outputs: outputs[:, 4:]),
    "all but the first": lambda words: Own(words, shape=lambda outputs: outputs[:, 1:]),
    "the context both ways": lambda words: Own(words, both_ways_over_the_context),
    "words that cannot be": lambda words: Own(
        words, shape=lambda outputs: outputs.index_fill(2, torch.tensor(0), -torch.inf)
    ),
    "the same for every word": lambda words: Own(words, shape=lambda outputs: torch.zeros_like(outputs)),
}
SEEING = {
    "convolution padded on both sides": lambda words: Own(words, Convolution(1, 1)),
    "attention": lambda words: Own(words, Attention(False)),
    "attention behind a gate that is shut": lambda words: Own(words, Attention(False, gate=0.0)),
    "LSTM both ways": lambda words: Own(words, Recurrent(batch_first=True, bidirectional=True)),
    "LSTM both ways in half precision": lambda words: Own(
        words, Recurrent(batch_first=True, bidirectional=True)
    ).bfloat16(),
    "a mean over all words": lambda words: Own(words, lambda x: x + 0.01 * x.mean(1, keepdim=True)),
    "one word later": lambda words: Own(words, shape=lambda outputs: outputs.roll(-1, 1)),
}
MISPLACED = {
    "all but the last": lambda outputs: outputs[:, :-1],
    "one word before": lambda outputs: nn.functional.pad(outputs, (0, 0, 1, 0))[:, :-1],
    "nothing for the last": lambda outputs: nn.functional.pad(outputs[:, :-1], (0, 0, 0, 1)),
}
LAYOUTS = {
    "[L,B,V]": (lambda outputs: outputs.transpose(0, 1), r"return outputs\.transpose\(0, 1\)"),
    "[B,V,L]": (lambda outputs: outputs.transpose(1, 2), r"return outputs\.transpose\(1, 2\)"),
    "[B,V]": (lambda outputs: outputs[:, -1], "behind every token rather than behind the last alone"),
    "[B*L,V]": (lambda outputs: outputs.flatten(0, 1), "return that shape"),
    "[V,B,L]": (lambda outputs: outputs.permute(2, 0, 1), "return that shape"),
    "fewer than are scored": (lambda outputs: outputs[:, -3:], "return that shape"),
}


def state_of(network: nn.Module) -> list:
    """Values, modes and plain attributes of a network."""
    values = [(name, value.tolist()) for name, value in network.state_dict().items()]
    return values + [(module.training, sorted(map(str, vars(module).items()))) for module in network.modules()]


@pytest.mark.parametrize("case", CAUSAL)
def test_causal_networks_are_taken_and_left_as_they_are(case, tmp_path, caplog) -> None:
    data = load_data(text(tmp_path / "text"))
    torch.manual_seed(0)
    network = CAUSAL[case](len(data.classes))
    before, random = state_of(network), torch.get_rng_state()
    check_classes(load_model(network, data=data), data)
    assert state_of(network) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert ("keeps something of what it saw" in caplog.text) == (case == "state that is kept")


@pytest.mark.parametrize("case", SEEING)
def test_networks_that_see_later_words_are_refused(case, tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    torch.manual_seed(0)
    with pytest.raises(UserError, match="the model sees the words that it is to foretell"):
        check_classes(load_model(SEEING[case](len(data.classes)), data=data), data)


@pytest.mark.parametrize("case", MISPLACED)
def test_outputs_at_other_words_are_refused(case, tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    with pytest.raises(UserError, match="outputs that do not stand at their words"):
        check_classes(load_model(Own(len(data.classes), shape=MISPLACED[case]), data=data), data)


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("length", [2, 6, 8])  # 2: as many as a batch that looks may have; 6: as many as words
def test_other_layouts_are_refused_with_what_to_do(case, length, tmp_path) -> None:
    """What they advise is tried."""
    data = load_data(text(tmp_path / "text").replace("length=8&context=4", f"length={length}&context=0"))
    shape, remedy = LAYOUTS[case]
    if case == "fewer than are scored" and length == 2:
        return
    with pytest.raises(UserError, match=remedy if length != 6 else None):
        check_classes(load_model(Own(len(data.classes), shape=shape), data=data), data)
    if "transpose" in remedy:
        there_and_back = [int(n) for n in remedy if n.isdecimal()]
        mended = Own(len(data.classes), shape=lambda outputs: shape(outputs).transpose(*there_and_back))
        check_classes(load_model(mended, data=data), data)


def test_samples_that_mix_are_refused(tmp_path) -> None:
    """A layer that takes the batch for time, and one that normalises over it."""
    data = load_data(text(tmp_path / "text"))
    sequence_first = Own(len(data.classes), Recurrent())
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    for network in (sequence_first, Own(len(data.classes), lambda x: norm(x.transpose(1, 2)).transpose(1, 2))):
        with pytest.raises(UserError, match="the model mixes samples"):
            check_classes(load_model(network, data=data), data)
    turned = Own(len(data.classes), lambda x: sequence_first.layer(x.transpose(0, 1)).transpose(0, 1))
    check_classes(load_model(turned, data=data), data)


def test_every_entry_refuses_before_it_writes(tmp_path) -> None:
    """Teacher and student alike."""
    data = text(tmp_path / "text")
    words = len(load_data(data).classes)
    bad, good, out = Own(words, Convolution(1, 1)), Own(words), tmp_path / "out"
    for refused in (
        lambda: evaluate(bad, data),
        lambda: train(bad, data, out=out),
        lambda: distill(bad, good, data, out=out),
        lambda: distill(good, bad, data, out=out),
        lambda: diagnose(bad, data, out=out),
        lambda: diagnose(good, data, student=bad, out=out),
    ):
        with pytest.raises(UserError, match="sees the words that it is to foretell"):
            refused()
    assert not out.exists()


def test_words_beyond_the_embedding_are_one_sentence(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    network = nn.Sequential(nn.Embedding(len(data.classes) - 1, 4), nn.Linear(4, len(data.classes)))
    with pytest.raises(UserError, match=r"fails on a text of all words of the vocabulary, numbers 0 to 5 \(index out"):
        check_classes(load_model(network, data=data), data)


def test_a_networks_own_context_is_its_own(tmp_path) -> None:
    data = load_data(text(tmp_path / "text"))
    network = Own(len(data.classes))
    network.context = 7
    check_classes(load_model(network, data=data), data)
    assert network.context == 7


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


FAMILIES = {
    "GPT2LMHeadModel": ("GPT2Config", {}),
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {"num_key_value_heads": 1}),
    "OPTForCausalLM": ("OPTConfig", {"ffn_dim": 16, "word_embed_proj_dim": 8}),
    "BertForMaskedLM": ("BertConfig", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_of_transformers(family, dtype, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    data = load_data(text(tmp_path / "text"))
    name, own = FAMILIES[family]
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, name)(vocab_size=len(data.classes), max_position_embeddings=32, **small, **own)
    torch.manual_seed(0)
    model = load_model(getattr(transformers, family)(config).to(dtype), data=data)
    if family == "BertForMaskedLM":
        with pytest.raises(UserError, match="sees the words that it is to foretell"):
            check_classes(model, data)
    else:
        check_classes(model, data)


def test_a_tokenizer_with_gaps_in_its_numbers(tmp_path) -> None:
    """Each word stands at its number, and a model with an embedding of all of them learns."""
    tokenizer(tmp_path / "gaps", {"<unk>": 0, "<eos>": 1, "one": 5, "two": 3, "three": 9, "four": 12})
    spec = f"{text(tmp_path / 'text')}&tokenizer={tmp_path / 'gaps'}"
    data = load_data(spec)
    assert len(data.classes) == 13
    assert [data.classes[n] for n in data.train.tokens[:5].tolist()] == ["one", "two", "three", "four", "one"]
    assert len(set(data.classes)) == 13
    assert train("zoo:lstm?hidden=8", spec, out=tmp_path / "run", epochs=20, lr=0.05).metrics["perplexity"] < 8
    folder = hugging(tmp_path / "gaps", 16)  # padded
    check_classes(load_model(folder, data=data), data)
    with pytest.raises(UserError, match=r"the model knows 12 words but the data's vocabulary has 13"):
        check_classes(load_model(hugging(tmp_path / "gaps", 12), data=data), data)


def test_words_added_to_a_tokenizer(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer(tmp_path / "added", VOCABULARY)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "added")
    found.add_tokens(["five"])
    found.save_pretrained(tmp_path / "added")
    place = text(tmp_path / "text")
    (tmp_path / "text" / "train.txt").write_text("one five two\n" * 60)
    data = load_data(f"{place}&tokenizer={tmp_path / 'added'}")
    assert data.classes == (*VOCABULARY, "five")
    assert data.train.tokens[:3].tolist() == [2, 6, 3]
    with pytest.raises(UserError, match=r"the model knows 6 words but the data's vocabulary has 7"):
        check_classes(load_model(hugging(tmp_path / "added", 6), data=data), data)
    check_classes(load_model(hugging(tmp_path / "added", 8), data=data), data)


def test_a_tokenizer_without_an_unknown_token(tmp_path, caplog) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {word: number for number, word in enumerate(("<eos>", "one", "two", "three"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>").save_pretrained(tmp_path / "words")
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate("onetwhr ")}, []))
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, eos_token=" ").save_pretrained(tmp_path / "letters")
    place = text(tmp_path / "text")
    with pytest.raises(
        UserError, match=r"tokenizer '.*words' cannot read the text \(.*\); expected one that knows all"
    ):
        load_data(f"{place}&tokenizer={tmp_path / 'words'}")
    load_data(f"{place}&tokenizer={tmp_path / 'letters'}")
    assert "has no token for 2 of the text's characters, such as 'f', and leaves out 10.5 % of it" in caplog.text


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
