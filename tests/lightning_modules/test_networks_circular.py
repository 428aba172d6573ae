"""Networks of the paper `circular`: published layer sizes, starting weights, and loading of pretrained backbones."""

import math
import sys

import pytest
import torch
import torchvision
from torch import nn

from lightning_modules.networks.fine_tuning_net import FineTuningNet
from lightning_modules.networks.probing_cnn import ProbingCNN
from lightning_modules.networks.quadrant_cnn import QuadrantCNN

GREY = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def shapes_and_counts(network, kinds):
    """Output shape (without the batch) and parameters of every layer of these kinds, in order."""
    found = []
    for layer in network.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda m, _, out: found.append((tuple(out.shape[1:]), count(m))))
    network(GREY)
    return found


@pytest.mark.parametrize(("outputs", "last", "total"), [(1, 17, 7_382_241), (2, 34, 7_382_258)])
def test_probing_cnn_has_the_layers_of_table_1(outputs, last, total):
    network = ProbingCNN(outputs)
    assert count(network) == total
    assert shapes_and_counts(network, (nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear)) == [
        ((16, 124, 124), 416),
        ((16, 62, 62), 0),
        ((32, 60, 60), 4_640),
        ((32, 30, 30), 0),
        ((28_800,), 0),
        ((256,), 7_373_056),
        ((16,), 4_112),
        ((outputs,), last),
    ]


def test_probing_cnn_starts_as_keras_does():
    torch.manual_seed(0)
    for layer in ProbingCNN().modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            receptive = math.prod(layer.weight.shape[2:])
            fan_in, fan_out = layer.weight.shape[1] * receptive, layer.weight.shape[0] * receptive
            limit = math.sqrt(6 / (fan_in + fan_out))
            assert layer.bias.abs().max() == 0
            assert layer.weight.abs().max() <= limit
            if layer.weight.numel() > 1000:
                assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)


def test_quadrant_cnn_has_the_published_layers_and_pools_the_last_row_too():
    network = QuadrantCNN()
    assert count(network) == 236_936
    assert [shape for shape, _ in shapes_and_counts(network, (nn.MaxPool2d, nn.Linear))] == [
        (16, 62, 62),
        (16, 29, 29),
        (32, 13, 13),
        (64, 5, 5),
        (100,),
        (4,),
    ]


def test_quadrant_cnn_starts_as_chainer_does():
    torch.manual_seed(0)
    for layer in QuadrantCNN().modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 1000:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.1)
            assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("network", [ProbingCNN(), QuadrantCNN()], ids=["probing", "quadrant"])
def test_images_of_another_size_are_refused(network):
    for shape in ((2, 1, 64, 64), (2, 3, 128, 128)):
        with pytest.raises(ValueError, match="128"):
            network(torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "backbone_count", "head_count"),
    [("efficientnet_v2_s", 20_177_488, 1_574_658), ("resnet50", 23_508_032, 2_361_090)],
)
def test_fine_tuning_net_has_the_published_head_on_its_backbone(backbone, backbone_count, head_count):
    network = FineTuningNet(backbone)
    assert count(network.backbone) == backbone_count
    assert count(network.head) == head_count
    assert count(network.head[2]) == 262_400  # the one head layer whose size Table 2 prints
    assert network(GREY[:, :, :96, :72]).shape == (2, 2)
    assert FineTuningNet(backbone, outputs=1)(GREY).shape == (2, 1)


def test_fine_tuning_net_repeats_grey_and_standardises_it_as_imagenet_weights_expect():
    network = FineTuningNet("resnet50").eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.full((1, 1, 32, 32), 0.456))
    expected = torch.tensor([(0.456 - 0.485) / 0.229, 0.0, (0.456 - 0.406) / 0.225])
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected, atol=1e-6, rtol=0)
    assert seen[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("build", [torchvision.models.efficientnet_v2_s, torchvision.models.resnet50])
def test_pretrained_weights_give_the_features_of_the_original_classifier(build, tmp_path):
    torch.manual_seed(1)
    original = build(weights=None, num_classes=7).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    network = FineTuningNet(build.__name__, pretrained_weights=str(tmp_path / "weights.pth")).eval()
    features = {}
    network.head.register_forward_pre_hook(lambda _, inputs: features.update(ours=inputs[0]))
    last = original.classifier if hasattr(original, "classifier") else original.fc
    last.register_forward_pre_hook(lambda _, inputs: features.update(original=inputs[0]))
    with torch.no_grad():
        network(GREY)
        original((GREY.expand(-1, 3, -1, -1) - network.mean) / network.std)
    torch.testing.assert_close(features["ours"], features["original"], atol=1e-5, rtol=1e-5)


def test_backbone_alone_loads_back(tmp_path):
    first = FineTuningNet("resnet50")
    torch.save(first.backbone.state_dict(), tmp_path / "backbone.pth")
    second = FineTuningNet("resnet50", pretrained_weights=str(tmp_path / "backbone.pth"))
    loaded = second.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in first.backbone.state_dict().items())


@pytest.fixture
def cache(tmp_path):
    """An empty torch cache folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.mark.slow
def test_cached_weights_are_read_and_never_downloaded(cache):
    with pytest.raises(FileNotFoundError, match=r"resnet50-0676ba61\.pth.*pretrained_weights"):
        FineTuningNet("resnet50", pretrained_weights="cache")
    original = torchvision.models.resnet50(weights=None)
    torch.save(original.state_dict(), cache / "resnet50-0676ba61.pth")
    network = FineTuningNet("resnet50", pretrained_weights="cache")
    assert torch.equal(network.backbone.conv1.weight, original.conv1.weight)
    assert list(cache.iterdir()) == [cache / "resnet50-0676ba61.pth"]


def test_cache_names_are_those_of_the_library():
    weights = torchvision.models
    assert weights.ResNet50_Weights.IMAGENET1K_V1.url.endswith("/resnet50-0676ba61.pth")
    assert weights.EfficientNet_V2_S_Weights.IMAGENET1K_V1.url.endswith("/efficientnet_v2_s-dd5fe13b.pth")


class Surprise:
    """An object that a careless loader would build."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "of its 318 tensors are missing"),
        ({"model": Surprise()}, "no plain state dict"),
        ([torch.zeros(3)], "no plain state dict"),
    ],
    ids=["another network", "pickled code", "a list"],
)
def test_files_that_hold_no_weights_of_this_backbone_are_refused_by_name(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message) as refusal:
        FineTuningNet("resnet50", pretrained_weights=str(tmp_path / "odd.pth"))
    assert "odd.pth" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_truncated_files_and_wrong_shapes_are_refused_by_name(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not the rest")
    with pytest.raises(ValueError, match=r"cut\.pth"):
        FineTuningNet("resnet50", pretrained_weights=str(tmp_path / "cut.pth"))
    state = FineTuningNet("resnet50").backbone.state_dict()
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"shape\.pth.*conv1\.weight"):
        FineTuningNet("resnet50", pretrained_weights=str(tmp_path / "shape.pth"))


def test_unknown_backbones_and_outputs_are_refused():
    with pytest.raises(ValueError, match="backbone must be one of efficientnet_v2_s, resnet50, yolov8_n"):
        FineTuningNet("vgg16")
    for outputs in (0, 3):
        with pytest.raises(ValueError, match="outputs"):
            FineTuningNet("resnet50", outputs=outputs)
        with pytest.raises(ValueError, match="outputs"):
            ProbingCNN(outputs)


def test_yolo_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", None)
    with pytest.raises(ValueError, match=r"pip install 'mechanolab\[yolo\]'"):
        FineTuningNet("yolov8_n")


def test_yolo_backbone_ends_at_its_pyramid_pooling_and_takes_plain_grey(tmp_path):
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    original = tasks.DetectionModel("yolov8n.yaml", ch=3, nc=80, verbose=False).eval()
    torch.save(original.state_dict(), tmp_path / "yolov8n.pth")
    network = FineTuningNet("yolov8_n", pretrained_weights=str(tmp_path / "yolov8n.pth")).eval()
    assert count(network.head) == 256 * 1024 + 1024 + 262_400 + 514
    assert type(network.backbone[-1]).__name__ == "SPPF"
    with torch.no_grad():
        expected = GREY.expand(-1, 3, -1, -1)
        for layer in original.model[:10]:
            expected = layer(expected)
        torch.testing.assert_close(network(GREY), network.head(expected.mean(dim=(2, 3))))
    with pytest.raises(ValueError, match=r"torch\.save\(YOLO"):
        FineTuningNet("yolov8_n", pretrained_weights="cache")
