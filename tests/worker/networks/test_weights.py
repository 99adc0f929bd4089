from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from worker.jobs.errors import WeightsMissing, WeightsUnfit
from worker.jobs.spec import Torchvision
from worker.networks.build import build
from worker.networks.weights import load_weights

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"  # torchvision's name for its ImageNet weights


@pytest.fixture(autouse=True)
def no_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def unreachable(*args: Any, **options: Any) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def made(name: str, *, channels: int = 3, side: int = 32, outputs: int = 10, **fields: Any) -> tuple[nn.Module, Any]:
    model = Torchvision.model_validate({"name": name, **fields})
    return build(model, channels=channels, height=side, width=side, outputs=outputs), model


def loaded(name: str, weights: str, folder: Path, *, allow_download: bool = False, **fields: Any) -> nn.Module:
    torch.manual_seed(1)
    network, model = made(name, weights=weights, **fields)
    load_weights(network, model, folder, allow_download=allow_download)
    return network


def theirs(name: str, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    state: dict[str, Tensor] = models.get_model(name, **options).state_dict()
    return state


def differing(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = network.state_dict()
    return [name for name in own if name not in state or not torch.equal(own[name], state[name])]


def test_a_file_of_the_same_network_is_taken_whole(folder: Path) -> None:
    state = theirs("resnet18", num_classes=10)
    save_file(state, folder / "mine.safetensors")
    assert differing(loaded("resnet18", "mine", folder), state) == []


def test_for_other_classes_only_the_last_layer_stays_new(folder: Path) -> None:
    save_file(theirs("squeezenet1_1"), folder / "mine.safetensors")
    network = loaded("squeezenet1_1", "mine", folder, outputs=7)
    torch.manual_seed(1)
    new, _ = made("squeezenet1_1", outputs=7)
    assert differing(network, theirs("squeezenet1_1")) == ["classifier.1.weight", "classifier.1.bias"]
    assert torch.equal(network.get_parameter("classifier.1.weight"), new.get_parameter("classifier.1.weight"))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_grey_picture_gives_what_it_gives_in_colour(folder: Path, channels: int) -> None:
    save_file(theirs("squeezenet1_1", num_classes=10), folder / "mine.safetensors")
    grey = loaded("squeezenet1_1", "mine", folder, channels=channels).eval()
    colour = loaded("squeezenet1_1", "mine", folder).eval()
    X = torch.rand(4, 1, 32, 32)
    expected = colour(X.expand(-1, 3, -1, -1))
    assert expected.std() > 1e-3
    torch.testing.assert_close(grey(X.expand(-1, channels, -1, -1)), expected)


def test_weights_of_grey_pictures_go_on_to_colour(folder: Path) -> None:
    torch.manual_seed(2)
    grey, _ = made("squeezenet1_1", channels=1)
    save_file(grey.state_dict(), folder / "mine.safetensors")
    colour = loaded("squeezenet1_1", "mine", folder).eval()
    X = torch.rand(4, 1, 32, 32)
    torch.testing.assert_close(colour(X.expand(-1, 3, -1, -1)), grey.eval()(X))


def test_the_small_stem_stays_new_until_it_is_in_the_file(folder: Path) -> None:
    save_file(theirs("resnet18", num_classes=10), folder / "large.safetensors")
    small = loaded("resnet18", "large", folder, small_stem=True)
    assert differing(small, theirs("resnet18", num_classes=10)) == ["conv1.weight"]
    save_file(small.state_dict(), folder / "small.safetensors")
    assert differing(loaded("resnet18", "small", folder, small_stem=True), small.state_dict()) == []
    with pytest.raises(WeightsUnfit, match=r"conv1\.weight has the shape 64 x 3 x 3 x 3, not 64 x 3 x 7 x 7"):
        loaded("resnet18", "small", folder)


def test_a_checkpoint_that_ends_with_a_log_softmax_fits(folder: Path) -> None:
    state = theirs("squeezenet1_1", num_classes=10)
    save_file({f"0.{name}": tensor for name, tensor in state.items()}, folder / "mine.safetensors")
    assert differing(loaded("squeezenet1_1", "mine", folder), state) == []


def test_torchvisions_own_file_is_read_from_the_folder_and_from_torchs_cache(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for place, classes in ((cache, 3), (folder, 4)):
        state = theirs("squeezenet1_1", num_classes=classes)
        torch.save(state, place / SQUEEZENET)
        assert differing(loaded("squeezenet1_1", "imagenet", folder, outputs=classes), state) == []


def test_torchvisions_own_file_is_downloaded_into_the_folder_if_that_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = theirs("squeezenet1_1")
    asked: list[tuple[Any, ...]] = []

    def download(url: str, model_dir: str, *others: Any, check_hash: bool, weights_only: bool, **options: Any) -> Any:
        asked.append((url.rpartition("/")[2], model_dir, check_hash, weights_only))
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    with pytest.raises(WeightsMissing, match="EPOCHD_ALLOW_DOWNLOAD=true"):
        loaded("squeezenet1_1", "imagenet", folder)
    assert asked == []
    network = loaded("squeezenet1_1", "imagenet", folder, allow_download=True, outputs=1000)
    assert asked == [(SQUEEZENET, str(folder), True, True)]
    assert differing(network, state) == []


@pytest.mark.parametrize(
    ("name", "make", "renamed"),
    [
        (
            "densenet121",
            lambda: models.DenseNet(2, (1, 1), 4),
            {".norm1.": ".norm.1.", ".norm2.": ".norm.2.", ".conv1.": ".conv.1.", ".conv2.": ".conv.2."},
        ),
        (
            "vit_b_16",
            lambda: models.VisionTransformer(32, 16, 1, 2, 8, 8),
            {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."},
        ),
    ],
)
def test_old_names_in_torchvisions_files_are_understood(
    folder: Path, name: str, make: Callable[[], nn.Module], renamed: dict[str, str]
) -> None:
    small = make()
    state = {key: tensor + 1 for key, tensor in small.state_dict().items()}
    old = dict(state)
    for now, then in renamed.items():
        of_this_name = [key for key in old if now in key]
        assert of_this_name
        old |= {key.replace(now, then): old.pop(key) for key in of_this_name}
    save_file(old, folder / "mine.safetensors")
    model = Torchvision.model_validate({"name": name, "weights": "mine"})
    load_weights(small, model, folder, allow_download=False)
    assert differing(small, state) == []


def test_old_files_need_not_count_batches_nor_lack_auxiliary_classifiers(folder: Path) -> None:
    state = theirs("googlenet", num_classes=10, init_weights=False)
    assert any(name.startswith("aux1.") for name in state)
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    save_file(kept, folder / "mine.safetensors")
    assert differing(loaded("googlenet", "mine", folder), state) == []


def test_googlenet_scales_its_input_as_its_own_weights_expect() -> None:
    for weights, channels, expected in (("imagenet", 3, True), ("imagenet", 1, False), (None, 3, False)):
        network, _ = made("googlenet", channels=channels, weights=weights)
        assert bool(network.transform_input) == expected
        assert network(torch.rand(2, channels, 32, 32)).shape == (2, 10)


def test_a_missing_file_is_named_by_its_place_in_the_data_folder(folder: Path) -> None:
    for weights, allowed, file in (
        ("mine", True, "weights/mine.safetensors is not in the data folder."),
        ("imagenet", False, f"weights/{SQUEEZENET} is not in the data folder."),
        ("imagenet", True, f"weights/{SQUEEZENET} is not in the data folder, and to download it failed just now."),
    ):
        with pytest.raises(WeightsMissing) as missing:
            loaded("squeezenet1_1", weights, folder, allow_download=allowed)
        assert missing.value.detail.startswith(file)
        assert str(folder) not in missing.value.detail


def test_weights_of_another_network_are_refused_and_change_nothing(folder: Path) -> None:
    save_file(theirs("squeezenet1_0"), folder / "mine.safetensors")
    network, model = made("squeezenet1_1", weights="mine")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsUnfit) as unfit:
        load_weights(network, model, folder, allow_download=False)
    assert unfit.value.detail.startswith("weights/mine.safetensors does not fit squeezenet1_1: features.6.squeeze")
    assert "is missing (and " in unfit.value.detail
    assert differing(network, before) == []


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    save_file({**theirs("squeezenet1_1"), "more": torch.zeros(1)}, folder / "mine.safetensors")
    with pytest.raises(WeightsUnfit, match=r"squeezenet1_1: more is not in the network\.$"):
        loaded("squeezenet1_1", "mine", folder)


def test_a_vit_for_other_pictures_says_which_size_its_weights_need(folder: Path) -> None:
    for_48, for_32 = (models.VisionTransformer(side, 16, 1, 2, 8, 8) for side in (48, 32))
    save_file(for_48.state_dict(), folder / "mine.safetensors")
    model = Torchvision.model_validate({"name": "vit_b_16", "weights": "mine"})
    with pytest.raises(WeightsUnfit, match="pos_embedding has the shape 1 x 10 x 8, not 1 x 5 x 8") as unfit:
        load_weights(for_32, model, folder, allow_download=False)
    assert unfit.value.hint is not None
    assert unfit.value.hint.endswith("image_size to 48.")


@pytest.mark.parametrize(("weights", "file"), [("mine", "mine.safetensors"), ("imagenet", SQUEEZENET)])
def test_a_damaged_file_is_said_to_be_damaged(folder: Path, weights: str, file: str) -> None:
    for contents in (b"", b"\x80\x02damaged", b"PK\x03\x04" + bytes(100)):
        (folder / file).write_bytes(contents)
        with pytest.raises(WeightsUnfit, match=f"^weights/{file} is damaged"):
            loaded("squeezenet1_1", weights, folder)


def test_a_file_of_something_else_is_refused_without_running_what_is_in_it(folder: Path) -> None:
    for contents, said in (
        ({"model": {}}, "does not hold tensors"),
        ([1], "does not hold"),
        (Path("/x"), "is damaged"),
    ):
        torch.save(contents, folder / SQUEEZENET)
        with pytest.raises(WeightsUnfit, match=said):
            loaded("squeezenet1_1", "imagenet", folder)
