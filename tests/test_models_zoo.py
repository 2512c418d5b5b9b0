"""The zoo: published sizes, plain structure, and networks that learn from their first step."""

import pytest
import torch
from torch import nn

from protege.models import ZOO, count_macs, count_parameters, load_model, zoo


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only lose by waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# name, arguments, parameters; from the papers, torchvision's and timm's documentation and the benchmarks' code
PUBLISHED = [
    ("resnet20", {"num_classes": 10}, 272_474),
    ("resnet56", {"num_classes": 10}, 855_770),
    ("resnet20", {"num_classes": 100}, 278_324),
    ("resnet56", {"num_classes": 100}, 861_620),
    ("resnet110", {"num_classes": 100}, 1_736_564),
    ("resnet8x4", {"num_classes": 100}, 1_233_540),
    ("resnet32x4", {"num_classes": 100}, 7_433_860),
    ("resnet18", {"num_classes": 1000, "stem": "imagenet"}, 11_689_512),
    ("resnet34", {"num_classes": 1000, "stem": "imagenet"}, 21_797_672),
    ("resnet50", {"num_classes": 1000, "stem": "imagenet"}, 25_557_032),
    ("vgg8_bn", {"num_classes": 100}, 3_965_028),
    ("vgg13_bn", {"num_classes": 100}, 9_462_180),
    ("vgg16_bn", {"num_classes": 10}, 14_728_266),
    ("mobilenetv2", {"num_classes": 1000, "image_size": 224}, 3_504_872),
    ("mobilenetv2", {"num_classes": 10}, 2_236_682),
    ("vit_tiny", {"num_classes": 1000, "image_size": 224}, 5_717_416),
    ("vit_small", {"num_classes": 1000, "image_size": 224}, 22_050_664),
]


CLASSIFIERS = [name for name in ZOO if name not in zoo.LANGUAGE and not name.startswith("unet")]

# the same structure with fewer channels, for tests that compute; full sizes are only built without memory
SLIM = {
    "resnet": {"width": 8},
    "vgg": {"width": 0.125},
    "mobilenetv2": {"width": 0.35},
    "vit": {"width": 24, "depth": 2},
}


def slim(name, **arguments):
    """Arguments for a thin network of that name, as far as it takes them."""
    for family, thin in SLIM.items():
        if name.startswith(family):
            arguments = thin | arguments
    return {key: value for key, value in arguments.items() if key in zoo.arguments_of(name)}


@pytest.mark.parametrize(("name", "arguments", "parameters"), PUBLISHED)
def test_published_parameter_counts(name, arguments, parameters):
    with torch.device("meta"):
        assert count_parameters(zoo.build(name, arguments)) == parameters


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_learns_and_predicts(name):
    torch.manual_seed(0)
    query = "&".join(f"{key}={value}" for key, value in slim(name, image_size=8).items())
    model = load_model(f"zoo:{name}?{query}", num_classes=10)
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model.train()
    nn.functional.cross_entropy(model(raw), torch.tensor([1, 7, 0, 3])).backward()
    for key, parameter in model.network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key.startswith("pos_embed"), key
    model.eval()
    with torch.no_grad():
        logits = model(raw)
        same = model.to(memory_format=torch.channels_last)(raw.contiguous(memory_format=torch.channels_last))
    assert logits.shape == (4, 10)
    torch.testing.assert_close(same, logits, rtol=1e-3, atol=1e-4 * logits.abs().max().item())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_takes_tiny_grey_images(name):
    network = zoo.build(name, slim(name, num_classes=10, channels=1, image_size=8)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_graph_can_be_traced(name):
    """Surgery reads networks as graphs: no control flow that depends on the input."""
    with torch.device("meta"):
        network = zoo.build(name, {"num_classes": 10})
    graph = torch.fx.symbolic_trace(network).graph
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    leaves = {key for key, module in network.named_modules() if not any(module.children())}
    assert called == leaves


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_no_module_works_in_place(name):
    with torch.device("meta"):
        network = zoo.build(name, {"num_classes": 10})
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize(("image_size", "kernel"), [(32, 3), (64, 3), (96, 7), (224, 7)])
def test_the_stem_follows_the_image_size(image_size, kernel):
    with torch.device("meta"):
        network = zoo.build("resnet18", {"num_classes": 10, "image_size": image_size})
    assert network.conv1.kernel_size == (kernel, kernel)


@pytest.mark.parametrize(("name", "resolutions"), [("resnet20", (32, 16, 8)), ("resnet18", (32, 16, 8, 4))])
def test_stages_halve_the_map(name, resolutions):
    network = zoo.build(name, {"num_classes": 10}).eval()
    x = network.maxpool(network.relu(network.bn1(network.conv1(torch.rand(1, 3, 32, 32)))))
    for number, resolution in enumerate(resolutions, start=1):
        x = getattr(network, f"layer{number}")(x)
        assert x.shape[2:] == (resolution, resolution)


def test_macs_of_resnet20_by_hand():
    stage1 = 6 * 16 * 16 * 9 * 32**2
    stage2 = (16 * 32 * 9 + 5 * 32 * 32 * 9 + 16 * 32) * 16**2
    stage3 = (32 * 64 * 9 + 5 * 64 * 64 * 9 + 32 * 64) * 8**2
    wanted = 3 * 16 * 9 * 32**2 + stage1 + stage2 + stage3 + 64 * 10
    assert 40e6 < wanted < 41e6
    network = zoo.build("resnet20", {"num_classes": 10})
    assert count_macs(network, torch.rand(3, 3, 32, 32)) == wanted


def test_macs_of_depthwise_convolutions_by_hand():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 4, 1, stride=2))
    assert count_macs(network, torch.rand(2, 8, 6, 6)) == 8 * 9 * 36 + 8 * 4 * 9


def test_macs_of_attention_by_hand():
    network = zoo.build("vit_tiny", {"num_classes": 10, "depth": 2, "width": 12})
    tokens, width = 65, 12
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    wanted = 64 * 3 * 16 * width + 2 * block + width * 10
    assert count_macs(network, torch.rand(5, 3, 32, 32)) == wanted


def test_counting_leaves_no_trace():
    model = load_model("zoo:resnet8", num_classes=10)
    model.train()
    model.network.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    raw = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert count_macs(model, raw) == count_macs(model, raw[:1])
    assert model.training
    assert model.network.layer2.training
    assert not model.network.layer1.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12
