"""Colours, mixing and transforms of one's own in views: functions of (seed, sample, view) and of nothing else."""

import functools
import linecache
import random
import subprocess
import sys
import textwrap

import forks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

import protege
from protege.data import CLEAN, Augment, InMemory, bare_batches, batches, check_augment, load_data
from protege.data.colour import CHANGES, jittered, randaugmented
from protege.data.labels import UNLABELLED
from protege.data.mixing import partners
from protege.data.transforms import Transform
from protege.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 9, 11, 3), np.uint8)
LABELS = torch.arange(24) % 3
SAMPLES = InMemory(torch.from_numpy(PIXELS), LABELS)
ITEMS = [(Image.fromarray(image), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)]
ALL = torch.arange(24)


def dimmed(image: torch.Tensor) -> torch.Tensor:
    return image // 2 if torch.rand(()) < 0.5 else (image * np.random.rand()).to(torch.uint8)


def pictured(image: Image.Image) -> Image.Image:
    return image.rotate(random.choice((0, 90, 180, 270))) if image.width == image.height else ImageOps.mirror(image)


def untold(image):
    return ImageOps.solarize(image, random.randrange(256))


TEXTS = [
    "jitter=0.5",
    "randaugment=9",
    "mixup=0.4",
    "cutmix=1",
    "mixup=0.2,cutmix=1,seed=3",
    "shift=2,flip,jitter=0.3,randaugment=20,mixup=1",
]
AUGMENTS = {text: Augment.parse(text) for text in TEXTS}
AUGMENTS |= {f.__name__: Augment(shift=1, flip=True, transform=f) for f in (dimmed, pictured, untold)}
AUGMENTS |= {"all": Augment(flip=True, jitter=0.2, randaugment=5, transform=dimmed, cutmix=0.5)}


def views(samples, index, augment, workers=None):
    """Inputs and labels of three views."""
    if workers is None:
        made = [samples.fetch(index, view, augment) for view in (0, 1, 7)]
    else:
        made = [batch for view in (0, 1, 7) for batch in batches(samples, [index], view, augment, workers=workers)]
    return torch.cat([batch.inputs for batch in made]), torch.cat([batch.labels for batch in made])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_view_is_a_function_of_seed_sample_and_view(name):
    """Whatever the batch, the way the set is kept, the process, and what was drawn before."""
    augment = AUGMENTS[name]
    whole = views(SAMPLES, ALL, augment)
    assert same(whole, views(SAMPLES, ALL, augment))
    assert whole[0].dtype == torch.uint8
    assert whole[0].stride()[1] == 1  # channels last
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for at in (3, 17):
        alone = views(SAMPLES, torch.tensor([at]), augment)
        assert same(alone, tuple(part[[at, 24 + at, 48 + at]] for part in whole))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (np.random.get_state()[1].tolist(), random.getstate())
    stream = load_data((ITEMS, ITEMS[:6]), memory_limit=10).train
    assert not stream.in_memory
    for workers in (0, 1):
        assert same(views(stream, ALL, augment, workers), whole)
    other = views(SAMPLES, ALL, Augment.parse(f"{augment},seed=9")) if augment.transform is None else None
    assert other is None or not torch.equal(other[0], whole[0])
    assert not torch.equal(whole[0][:24], whole[0][24:48])
    assert torch.equal(SAMPLES.fetch(ALL, CLEAN, augment).inputs, SAMPLES.fetch(ALL, CLEAN, Augment()).inputs)
    assert torch.equal(SAMPLES.fetch(ALL, CLEAN, augment).labels, LABELS)


def test_other_processes_show_the_same(tmp_path):
    (tmp_path / "my_rain.py").write_text(RAIN)
    code = """
        import hashlib, sys, torch
        from protege.data import Augment, load_data
        samples = load_data("digits").train
        augment = Augment.parse("shift=1,jitter=0.4,randaugment=9,my_rain:rain,mixup=0.3")
        batch = samples.fetch(torch.arange(64), 2, augment)
        print(hashlib.sha256(batch.inputs.numpy().tobytes()).hexdigest(), augment.identity())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    outs = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)]  # with hashes of its own
    outs += [forks.python(textwrap.dedent(code), tmp_path)]
    assert outs[0].stdout == outs[1].stdout != "", outs[0].stderr


@settings(max_examples=30, deadline=None)
@given(st.text("abcflip=,:.0123456789 mixup jitter", max_size=20))
def test_what_is_no_augment_is_told_in_one_sentence(text):
    try:
        augment = Augment.parse(text)
    except UserError as error:
        sentence = str(error)
    else:
        assert Augment.parse(str(augment)) == augment
        return
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text):
    assert Augment.parse(str(Augment.parse(text))) == Augment.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jitter=2", r"jitter=2 is not in 0 to 1"),
        ("randaugment=31", r"randaugment=31 is not in 0 to 30"),
        ("mixup=-1", r"mixup=-1 is not in 0 to 1000"),
        ("cutmix=nan", r"cutmix=nan is not in 0"),
        ("jitter", r"cannot be read at 'jitter'"),
        ("mixip=0.2", r"unknown part 'mixip'; did you mean 'mixup'"),
        ("nothing_here:at_all", r"augment 'nothing_here:at_all' names no module that can be imported from here; "),
        ("json:dump_it", r"module 'json' has no 'dump_it', named by augment 'json:dump_it'; did you mean"),
        ("json:dumps,json:loads", r"unknown part 'json:loads'; give one callable"),
        ("python:lambda", r"was given in Python, which a recipe cannot hold; expected it again: pass augment="),
    ],
)
def test_refused_texts(text, says):
    with pytest.raises(UserError, match=says):
        Augment.parse(text)


# ---- colours --------------------------------------------------------------------------------------------------------


def test_jitter_against_floats():
    """Brightness, contrast about the mean grey and saturation, as their formulas have them, to within rounding."""
    from protege.data.views import Draw, draws

    strength, images = 0.6, torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    found = jittered(images, 3, ALL, 5, strength).double()
    bits = draws(3, ALL, 5, Draw.SATURATION + 1)[:, Draw.BRIGHTNESS :].double() / 2**32
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    for image, out, (b, c, s) in zip(images.double(), found, 1 - strength + 2 * strength * bits, strict=True):
        x = (image * b).clamp(0, 255)
        mean = (x * luma).sum(0).mean()
        x = (mean + (x - mean) * c).clamp(0, 255)
        grey = (x * luma).sum(0)
        x = (grey + (x - grey) * s).clamp(0, 255)
        assert (x - out).abs().max() < 5  # whole numbers after each step, which the next may stretch


def test_grey_images_have_their_own_jitter():
    grey = torch.from_numpy(PIXELS[..., :1]).permute(0, 3, 1, 2)
    found = jittered(grey, 0, ALL, 0, 0.5)
    assert found.shape == grey.shape
    in_colour = jittered(grey.expand(-1, 3, -1, -1), 0, ALL, 0, 0.5)
    assert (in_colour.int() - found.int()).abs().max() <= 2


def test_randaugment_makes_two_of_the_changes():
    images = torch.from_numpy(PIXELS[:1]).permute(0, 3, 1, 2).expand(600, -1, -1, -1)
    found = randaugmented(images, 0, torch.arange(600), 0, 30)
    picture = Image.fromarray(PIXELS[0])
    pairs = {
        np.asarray(second(first(picture, 1, a), 1, b)).tobytes()
        for first in CHANGES
        for second in CHANGES
        for a in (1, -1)
        for b in (1, -1)
    }
    shown = {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in found}
    assert shown <= pairs
    assert len(shown) > 150


def test_what_the_changes_do():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    by_step = [[np.asarray(change(ramp, level, 1)).astype(int) for level in (0, 0.5, 1)] for change in CHANGES]
    assert all((weak == np.asarray(ramp)).all() for weak, *_ in by_step[:12])  # the last two have no strength
    assert ((255 - by_step[11][2]) == np.asarray(ramp))[1:].all()
    assert (by_step[3][1][:, :5] == np.asarray(ramp)[:, 4:9]).all()  # 16 · 150/331 · 0.5 is 3.6 pixels
    assert (by_step[6][1] >= np.asarray(ramp)).all()


# ---- mixing ---------------------------------------------------------------------------------------------------------


def mix_of(augment, view=4):
    """Own and partners' images of a view, and what was mixed of them."""
    alone = Augment(shift=augment.shift, flip=augment.flip, seed=augment.seed)
    others = partners(augment, ALL, view, len(SAMPLES))
    own, theirs = (SAMPLES.fetch(index, view, alone).inputs.int() for index in (ALL, others))
    return own, theirs, others, SAMPLES.fetch(ALL, view, augment)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.05, 0.4, 1.0, 8.0]), st.integers(0, 40), st.booleans())
def test_mixup_is_one_share_of_each_image(alpha, view, flip):
    own, theirs, others, batch = mix_of(Augment(flip=flip, mixup=alpha), view)
    for at in range(24):
        w = torch.arange(257).view(-1, 1, 1, 1)
        mixed = (own[at] * w + theirs[at] * (256 - w) + 128) >> 8
        fits = (mixed == batch.inputs[at]).flatten(1).all(1).nonzero().flatten().tolist()
        assert fits
        pure = {256: LABELS[at], 0: LABELS[others[at]]}.get(fits[0], UNLABELLED)
        same_class = LABELS[at] == LABELS[others[at]]
        assert batch.labels[at] == (LABELS[at] if same_class else pure)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.05, 1.0, 8.0]), st.integers(0, 40))
def test_cutmix_is_a_box_of_the_other(alpha, view):
    own, theirs, others, batch = mix_of(Augment(shift=1, cutmix=alpha), view)
    for at in range(24):
        differ = (batch.inputs[at] != own[at]).any(0)
        if differ.any():
            rows, columns = differ.any(1).nonzero(), differ.any(0).nonzero()
            box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
            assert torch.equal(batch.inputs[at][:, *box].int(), theirs[at][:, *box])
        whole = differ.all()
        pure = LABELS[at] if not differ.any() else LABELS[others[at]] if whole else UNLABELLED
        assert batch.labels[at] in (pure, LABELS[at] if LABELS[at] == LABELS[others[at]] else pure)


def test_shares_have_their_distribution():
    from protege.data.mixing import weights

    index = torch.arange(20000)
    share = weights(Augment(mixup=0.4), index, 0, 8, 8)[1].double() / 256
    assert abs(share.mean() - 0.5) < 0.01
    assert abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.003  # of Beta(α, α)
    inside = weights(Augment(cutmix=1.0), index, 0, 64, 64)[0].double().mean() / 256
    assert 0.5 < inside < 0.7  # what lies beyond the border is cut off
    both = weights(Augment(mixup=0.4, cutmix=1.0), index, 0, 8, 8)[0]
    cut = ((both == 0) | (both == 256)).all((1, 2))
    assert 0.45 < cut.double().mean() < 0.7


def test_only_samples_that_may_be_learned_from_are_mixed_in():
    pool = torch.tensor([2, 5, 11])
    for view in range(20):
        assert set(partners(Augment(mixup=1.0).among(pool), ALL, view, 24).tolist()) <= {2, 5, 11}
    assert Augment(mixup=1.0).among(pool).identity() != Augment(mixup=1.0).among(pool[:2]).identity()
    assert Augment(flip=True).among(pool).identity() == Augment(flip=True).identity() == "flip,seed=0"


@pytest.mark.parametrize("text", ["mixup=0.1", "cutmix=0.1", "mixup=0.1,cutmix=0.1", "flip"])
def test_labels_without_images_are_those_of_batches(text):
    order, augment = list(ALL.split(7)), Augment.parse(text)
    for view in (CLEAN, 0, 3):
        found = (each(SAMPLES, order, view, augment) for each in (bare_batches, batches))
        for bare, whole in zip(*found, strict=True):
            assert torch.equal(bare.labels, whole.labels)


# ---- transforms of one's own ----------------------------------------------------------------------------------------

RAIN = """
import torch
from PIL import Image

def rain(image: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.rand(image.shape) < 0.1, 255, image).to(torch.uint8)

class Fog:
    def __call__(self, image: Image.Image):
        return image.point(lambda x: 128 + x // 2)
"""


class Layer(nn.Module):
    def __init__(self, shift=3):
        super().__init__()
        self.shift = shift

    def forward(self, image):
        return image.roll(self.shift, -1)


class Restless:
    def __init__(self):
        self.count = 0

    def __call__(self, image):
        self.count += 1
        return image + self.count % 2


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    "function",
    [
        Layer(),
        functools.partial(torch.roll, shifts=2, dims=-1),
        lambda image: image.float() / 255,
        lambda image: image.flip(-1).numpy(),
        lambda image: ImageOps.invert(image),
        lambda image: ImageOps.grayscale(image),
    ],
)
def test_whatever_takes_an_image(function):
    found = SAMPLES.fetch(ALL, 0, Augment(transform=function)).inputs
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    wanted = {
        "Layer": images.roll(3, -1),
        "partial": images.roll(2, -1),
        "float": images,
        "flip": images.flip(-1),
        "invert": 255 - images,
    }
    fitting = [name for name, image in wanted.items() if torch.equal(image, found)]
    grey = (found == found[:, :1]).all()
    assert grey or fitting


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (Restless(), "does not make the same of an image with the same seeds; expected one that draws from torch's"),
        (lambda image: image + int(GENERATOR.integers(2)), "does not make the same of an image with the same seeds"),
        (lambda image: image[:, 1:], r"makes an image of shape \(3, 8, 11\) of one of \(3, 9, 11\)"),
        (lambda image: None, "what augment .* returns has an image of type NoneType"),
        (lambda image: image.float(), "has float values from .* divide the images by 255"),
        (lambda: 1, r"cannot be called with an image \(TypeError"),
        (3, "augment = 3 is a int; expected text such as"),
    ],
)
def test_transforms_that_cannot_be_used(function, says):
    with pytest.raises(UserError, match=says):
        check_augment(Augment(transform=function), (3, 9, 11))


def test_a_transform_that_fails_later_names_the_sample():
    white = InMemory(torch.full((3, 4, 4, 3), 255, dtype=torch.uint8), torch.zeros(3))

    def picky(image: torch.Tensor) -> torch.Tensor:
        return image if image.min() < 255 else 1 / 0

    with pytest.raises(UserError, match=r"augment 'python:.*picky' fails on sample 0 with ZeroDivisionError"):
        white.fetch(torch.arange(3), 0, Augment(transform=picky))


def test_transforms_are_known_by_their_source(tmp_path, monkeypatch):
    def made(factor):
        return lambda image: image * factor

    def again(factor):
        return lambda image: image * factor

    digest = lambda function: Transform.of(function).digest  # noqa: E731
    assert digest(made(1)) == digest(made(1))
    assert len({digest(f) for f in (made(1), made(2), Layer(), Layer(4), dimmed, pictured)}) == 6
    assert digest(nn.Sequential(Layer(2))) != digest(nn.Sequential(Layer(3)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rain_one.py").write_text(RAIN)
    (tmp_path / "my_rain_two.py").write_text(RAIN.replace("0.1", "0.2"))
    one, two = (Transform.named(f"my_rain_{n}:rain") for n in ("one", "two"))
    assert one.digest != two.digest
    fog = Augment.parse("my_rain_one:Fog")
    assert (SAMPLES.fetch(ALL, 0, fog).inputs >= 128).all()
    assert Augment(transform=dimmed).identity() != Augment(transform=pictured).identity()


# ---- runs -----------------------------------------------------------------------------------------------------------

QUICK = {"data": "digits", "samples": 60, "epochs": 2, "views": 2, "batch_size": 20, "precision": "fp32"}


def weights_of(result):
    return torch.cat([value.flatten() for value in result.student.network.state_dict().values()])


def run(out, augment, **settings):
    torch.manual_seed(0)
    teacher = protege.load_model("zoo:mlp?hidden=8", data=load_data("digits"))
    return protege.distill(teacher, "zoo:mlp?hidden=4", out=out, augment=augment, **{**QUICK, **settings})


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))


def test_runs_are_the_same_each_time_and_known_by_the_transform(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_snow.py").write_text(RAIN)
    text = "shift=1,my_snow:rain,mixup=0.3"
    first, again = (weights_of(run(tmp_path / name, text)) for name in ("a", "b"))
    assert torch.equal(first, again)
    assert f'augment = "{text}"' in (tmp_path / "a" / "recipe.toml").read_text()
    import my_snow

    given = Augment(shift=1, transform=my_snow.rain, mixup=0.3)
    assert torch.equal(weights_of(run(tmp_path / "c", given)), first)
    assert forks.run("distill", "--resume", "--out", "a", cwd=tmp_path).returncode == 0
    (tmp_path / "my_snow.py").write_text(RAIN.replace("0.1", "0.3"))
    sys.modules.pop("my_snow")
    linecache.clearcache()
    with pytest.raises(UserError, match=r"found another transform than .* was begun with"):
        run(tmp_path / "a", text, resume=True)


def test_callables_are_given_in_python_and_again_on_resume(tmp_path):
    first = run(tmp_path / "a", lambda image: image // 2)
    assert "python:" in (tmp_path / "a" / "recipe.toml").read_text()
    assert torch.equal(weights_of(first), weights_of(run(tmp_path / "b", lambda image: image // 2)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "none"}, r"mixes images, which then have no single true class, and method 'none' needs it"),
        ({"target": "pt"}, r"target 'pt' needs the true class, which an image that augment = 'mixup=0.2' mixes"),
        ({"target": "dkd"}, r"target 'dkd' needs the true class"),
    ],
)
def test_who_needs_the_true_class_refuses_mixing(tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        run(tmp_path / "out", "mixup=0.2", **settings)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "kd", "cutmix=1,mixup=0.2", target="topk", k=3)


def test_what_does_not_suit_the_data_is_refused():
    for text in ("randaugment=3", "mixup=0.2", "cutmix=1"):
        with pytest.raises(UserError, match="does not suit images with masks"):
            check_augment(Augment.parse(text), (3, 8, 8), masked=True)
    check_augment(Augment.parse("jitter=0.3,flip"), (3, 8, 8), masked=True)
    with pytest.raises(UserError, match="does not suit text"):
        check_augment(Augment.parse("jitter=0.3"), (70,))
    with pytest.raises(UserError, match="does not suit images of 4 channels"):
        check_augment(Augment.parse("randaugment=3"), (4, 8, 8))
