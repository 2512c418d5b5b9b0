"""Synthetic data: class centres have the correlation asked for, and everything comes from the seed."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protege.data import Augment, load_data
from protege.data.synthetic import Dials, centres, class_names, observe, read_dials, synthetic
from protege.errors import UserError
from protege.models import check_classes, load_model


@st.composite
def dials(draw) -> Dials:
    classes = draw(st.integers(2, 12))
    return Dials(
        classes=classes,
        superclasses=draw(st.integers(1, classes)),
        correlation=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        noise=draw(st.sampled_from([0.0, 0.3])),
        samples=3 * classes,
        dim=draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 5)),
    )


@settings(deadline=None, max_examples=30)
@given(dials())
def test_centres_are_unit_vectors_with_the_cosine_asked_for(some):
    found = centres(some) @ centres(some).T
    group = np.array(some.superclass)
    expected = np.where(group[:, None] == group, some.correlation, 0.0)
    np.fill_diagonal(expected, 1.0)
    assert np.abs(found - expected).max() < 1e-12
    assert sorted(set(group)) == list(range(some.superclasses))


@settings(deadline=None, max_examples=15)
@given(dials())
def test_one_seed_gives_one_set_and_more_samples_begin_with_fewer(some):
    first, again = synthetic(some), synthetic(some)
    more = synthetic(Dials(**{**vars(some), "samples": 2 * (some.samples or 0)}))
    for split in ("train", "test"):
        assert torch.equal(first[split].pixels, again[split].pixels)
        assert first[split].fingerprint() == again[split].fingerprint()
    assert torch.equal(more["train"].pixels[: some.samples], first["train"].pixels)
    assert first["train"].labels.bincount().tolist() == [3] * some.classes
    other = synthetic(Dials(**{**vars(some), "seed": some.seed + 1}))
    assert not torch.equal(first["test"].pixels, other["test"].pixels)


def test_bytes_are_the_map_to_within_half_a_step():
    some = Dials(classes=5, superclasses=2, noise=0.0, samples=5, dim=7)
    exact = observe(some, centres(some))
    seen = synthetic(some)["train"].pixels[:, 0, 0].double().numpy() / 127.5 - 1
    assert np.abs(seen - exact).max() <= 0.5 / 127.5 + 1e-12
    assert np.abs(exact).max() < 1


def test_noise_makes_classes_harder_and_correlation_hides_them_in_their_superclass():
    def nearest(text: str) -> tuple[float, float]:
        data = load_data(f"synthetic:classes=8,superclasses=2,dim=32,{text}")
        group = torch.tensor(data.superclasses)
        x, test = (s.pixels.flatten(1).float() for s in (data.train, data.test))
        means = torch.stack([x[data.train.labels == k].mean(0) for k in range(8)])
        guess = torch.cdist(test, means).argmin(1)
        right = (guess == data.test.labels).float().mean().item()
        return right, (group[guess] == group[data.test.labels]).float().mean().item()

    easy, noisy, close = nearest("noise=0.1"), nearest("noise=0.6"), nearest("noise=0.3,correlation=0.95")
    assert easy[0] > 0.95 > noisy[0] + 0.1
    assert close[1] > close[0] + 0.2


def test_the_spec_names_data_that_every_network_takes():
    data = load_data("synthetic:classes=6,superclasses=3,samples=24,dim=9")
    assert data.train.shape == (9, 1, 1)
    assert data.superclasses == (0, 0, 1, 1, 2, 2)
    assert data.classes == class_names(Dials(classes=6, superclasses=3))
    assert data.classes[2] == "s1/c2"
    assert data.augment == Augment()
    for spec in ("zoo:mlp", "zoo:mlp?depth=0", "zoo:cnn_tiny", "zoo:resnet8"):
        model = load_model(spec, data=data)
        check_classes(model, data)
    assert load_model("zoo:mlp?depth=0", data=data).network.fc.in_features == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clases=4", "'clases'"),
        ("classes=many", "'classes=many'"),
        ("classes=1", "classes=1"),
        ("superclasses=30", "superclasses=30"),
        ("correlation=1.5", "correlation=1.5"),
        ("noise=-1", "noise=-1"),
        ("noise=nan", "noise=nan"),
        ("samples=3", "samples=3"),
        ("dim=0", "dim=0"),
        ("seed=-1", "seed=-1"),
    ],
)
def test_a_wrong_dial_is_named(text, told):
    with pytest.raises(UserError, match="data 'synthetic:") as caught:
        load_data(f"synthetic:{text}")
    assert told in str(caught.value)


def test_an_image_size_is_refused():
    with pytest.raises(UserError, match="one pixel"):
        load_data("synthetic:", image_size=8)
    assert read_dials("") == Dials()


def test_a_coarse_label_beside_the_label_is_the_hierarchy(tmp_path):
    def write(coarse, name="train.parquet"):
        image = io.BytesIO()
        Image.new("RGB", (4, 4)).save(image, "png")
        fine = [0, 1, 2, 0, 1, 2]
        columns = {"image": [image.getvalue()] * 6, "fine_label": fine, "coarse_label": coarse}
        pq.write_table(pa.table(columns), tmp_path / name)
        return load_data(f"parquet:{tmp_path}").superclasses

    assert write([1, 0, 1, 1, 0, 1]) == (1, 0, 1)
    assert write([1, 0, 1, 0, 0, 1]) is None  # a class of two superclasses has none
    assert load_data("digits").superclasses is None
