"""Images that are decoded once, larger than networks see them: crops are cut from these, and nothing else changes."""

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_scenes
from test_data_images import whole, write_images
from torch._dynamo.testing import CompileCounter

from protege import distill
from protege.data import CLEAN, Augment, batches, load_data
from protege.data.framing import centred
from protege.data.views import boxes, key_of
from protege.errors import UserError

SIZE, SIDE = 20, 30
ALL = torch.arange(6)


def photo(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = {f"{part}/{'ab'[n % 2]}/{n}.png": photo(n) for part, n in [("train", n) for n in range(6)] + [("test", 7)]}
    return write_images(tmp_path_factory.mktemp("photos"), files | {"test/b/8.png": photo(8)})


@pytest.fixture
def opened(folder):
    return lambda **how: load_data(f"images:{folder}", image_size=SIZE, **how)


def test_crops_are_cut_from_larger_images(opened):
    train, augment = opened(decoded_size=SIDE).train, Augment(crop=0.3, flip=True)
    assert train.shape == (3, SIZE, SIZE)
    kept = [torch.from_numpy(np.array(centred(photo(n), SIDE, SIDE))) for n in (0, 2, 4, 1, 3, 5)]
    for view in range(3):
        made = train.fetch(ALL, view, augment).inputs
        assert made.shape == (6, 3, SIZE, SIZE)
        assert made.is_contiguous(memory_format=torch.channels_last)
        box, flip = boxes(augment, ALL, view, *[torch.full((6,), SIDE)] * 2)
        for image, source, (top, left, h, w), mirrored in zip(made, kept, box.tolist(), flip, strict=True):
            part = source[top : top + h, left : left + w].permute(2, 0, 1).float()[None]
            part = torch.nn.functional.interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
            assert (image.float() - (part.flip(2) if mirrored else part)).abs().max() <= 3


@pytest.mark.parametrize("text", ["shift=2,flip", "jitter=0.3", "none"])
def test_what_is_not_cropped_is_as_without(opened, text):
    plain, larger, augment = opened(), opened(decoded_size=SIDE), Augment.parse(text)
    for view in (CLEAN, 0, 5):
        assert torch.equal(*(data.train.fetch(ALL, view, augment).inputs for data in (plain, larger)))
    crops = Augment(crop=0.3)
    assert torch.equal(*(data.train.fetch(ALL, CLEAN, crops).inputs for data in (plain, larger)))
    assert torch.equal(*(data.test.fetch(ALL[:2], 0, crops).inputs for data in (plain, larger)))


def test_parts_copies_and_compiled_programs_show_the_same(opened):
    train, augment = opened(decoded_size=SIDE).train, Augment(crop=0.3, flip=True)
    at, counter = torch.tensor([1, 0]), CompileCounter()
    part = train.part(torch.tensor([3, 5])).relabelled(torch.tensor([1, 0]))
    images = part.fetch(at, 4, augment).inputs
    assert torch.equal(part.copied("cpu").fetch(at, 4, augment).inputs, images)
    render = part.renderer(augment)
    compiled = torch.compile(lambda i, v: render(i, v), fullgraph=True, dynamic=False, backend=counter)
    for view in (3, 4):
        made = compiled(at, torch.tensor(key_of(augment.seed, view)))[0]
    assert torch.equal(made, images)
    assert counter.frame_count == 1
    with pytest.raises(TypeError, match="clean view"):
        render(at, CLEAN)


def test_only_what_views_show_is_decoded(opened):
    train = opened(decoded_size=SIDE).train
    list(batches(train, [ALL[:2]], 0, Augment(crop=0.3)))
    assert train.larger.missing.tolist() == [False, False, True, True, True, True]
    assert train.images.missing.all()
    list(batches(train, [ALL[4:]], CLEAN, Augment(crop=0.3)))
    assert train.images.missing.tolist() == [True] * 4 + [False] * 2


def test_signals_of_one_size_are_not_taken_for_those_of_another(opened):
    digests = [opened(decoded_size=side).train.fingerprint() for side in (None, SIZE, SIDE, SIDE + 1)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    larger = opened(decoded_size=SIDE).train
    assert larger.part(ALL[1:]).fingerprint() not in [opened().train.part(ALL[1:]).fingerprint(), digests[2]]
    assert larger.copied("cpu").fingerprint() == digests[2]


def test_streams_cut_from_the_files(opened):
    plain, larger = (opened(memory_limit=10, decoded_size=side).train for side in (None, SIDE))
    assert not larger.in_memory
    assert torch.equal(*(s.fetch(ALL, 0, Augment(crop=0.3)).inputs for s in (plain, larger)))
    fits = 8 * SIZE * SIZE * 3 + 6 * SIDE * SIDE * 3
    assert opened(memory_limit=fits, decoded_size=SIDE).train.in_memory
    assert not opened(memory_limit=fits - 1, decoded_size=SIDE).train.in_memory


def test_where_it_does_not_suit(opened, tmp_path):
    with pytest.raises(UserError, match=r"decoded size 19 does not suit images of 20 pixels.*such as 25, or leave"):
        opened(decoded_size=19)
    with pytest.raises(UserError, match="at most 16,384"):
        opened(decoded_size=10**6)
    write_scenes(tmp_path / "scenes")
    small = write_images(tmp_path / "small", {f"{c}/{n}.png": photo(n).resize((9, 9)) for c in "ab" for n in range(4)})
    memory = [(photo(n), n % 2) for n in range(4)]
    for data in ("digits", "synthetic:classes=8", f"segmentation:{tmp_path}/scenes", f"images:{small}", memory):
        for limit in (1 << 30, 10):
            if data != f"images:{small}" or limit > 10:  # which streams do not bring to another size
                with pytest.raises(UserError, match=r"decoded size 288 cannot be had of .*leave it out"):
                    load_data(data, decoded_size=288, memory_limit=limit)
    assert whole(small, decoded_size=9).train.larger is None


def test_a_run_learns_from_them(folder, tmp_path):
    settings = {"image_size": SIZE, "epochs": 2, "precision": "fp32", "validation": 0.4, "augment": "crop=0.5"}
    runs = {}
    for side in (None, SIZE, SIDE):
        out = tmp_path / str(side)
        distill(None, "zoo:mlp?hidden=8", f"images:{folder}", "none", out, decoded_size=side, **settings)
        runs[side] = (out / "student" / "model.safetensors").read_bytes()
    assert runs[None] == runs[SIZE] != runs[SIDE]
    with pytest.raises(UserError, match="decoded_size"):
        distill(
            None, "zoo:mlp?hidden=8", f"images:{folder}", "none", tmp_path / str(SIDE), resume=True, decoded_size=SIZE
        )
