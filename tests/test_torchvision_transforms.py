"""torchvision's transforms as they are, as `augment` of one's own."""

import pytest
import torch

from protege.data import Augment, InMemory, check_augment
from protege.torch_utils import admit_torchvision

admit_torchvision()
v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
v1 = pytest.importorskip("torchvision.transforms", exc_type=ImportError)

SAMPLES = InMemory(
    torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12) % 2,
)
TRANSFORMS = {
    "ColorJitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "RandAugment": v2.RandAugment(),
    "TrivialAugmentWide": v2.TrivialAugmentWide(),
    "AugMix": v2.AugMix(),
    "RandomErasing": v2.RandomErasing(p=0.5),
    "RandomResizedCrop": v2.RandomResizedCrop(16, antialias=True),
    "GaussianBlur": v2.GaussianBlur(3),
    "RandomPerspective": v2.RandomPerspective(),
    "JPEG": v2.JPEG((10, 90)),
    "Compose": v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomApply([v2.RandomRotation(30)]), v2.ToDtype(torch.uint8)]
    ),
    "floats": v2.Compose([v2.ToImage(), v2.RandomPosterize(3), v2.ToDtype(torch.float32, scale=True)]),
    "pictures": v1.Compose([v1.RandomCrop(16, padding=2), v1.ColorJitter(0.3), v1.ToTensor()]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_are_exact(name):
    augment, index = Augment(transform=TRANSFORMS[name]), torch.arange(12)
    check_augment(augment, SAMPLES.shape)
    state = torch.get_rng_state()
    whole = SAMPLES.fetch(index, 3, augment).inputs
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(SAMPLES.fetch(index.flip(0), 3, augment).inputs.flip(0), whole)
    assert torch.equal(SAMPLES.fetch(index[5:6], 3, augment).inputs, whole[5:6])
    assert not torch.equal(SAMPLES.fetch(index, 4, augment).inputs, whole)
    digests = {Augment(transform=transform).identity() for transform in TRANSFORMS.values()}
    assert len(digests) == len(TRANSFORMS)


def test_a_view_is_what_the_transform_makes_with_its_seed():
    """By hand: seed, call, compare."""
    from protege.data.views import Draw, draws

    jitter = v2.ColorJitter(0.4, 0.4)
    view = SAMPLES.fetch(torch.tensor([7]), 2, Augment(transform=jitter)).inputs[0]
    high, low = draws(0, torch.tensor([7]), 2, Draw.OWN_LOW + 1)[0, Draw.OWN_HIGH :].tolist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(high << 32 | low)
        by_hand = jitter(SAMPLES.pixels[7].permute(2, 0, 1).contiguous())
    assert torch.equal(view, by_hand)
