"""A training as one finds it in pytorch/examples, in our own words: the yardstick for convolutional networks.

A DataLoader with two worker processes, torchvision's transforms, SGD with momentum, stock fp32. Prints one JSON line an
epoch. Takes the first pictures of FashionMNIST when it is told how many.
"""

import argparse
import json
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms
from torchvision.models import resnet18

BATCH_SIZE, LR, MOMENTUM = 64, 0.05, 0.9


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.bn2(self.conv2(x))), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc2(x)
        return logits


def small_resnet18() -> nn.Module:
    """For grey pictures of 32 x 32."""
    model: nn.Module = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def make_loaders(root: str, is_resnet: bool, pictures: tuple[int, int] | None) -> list[DataLoader[tuple[Tensor, int]]]:
    scale = [transforms.Resize(32)] if is_resnet else []
    augment = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()]
    loaders = []
    for train in (True, False):
        steps = [*(augment if train else []), *scale, transforms.ToTensor()]
        data: Dataset[tuple[Tensor, int]] = datasets.FashionMNIST(root, train, transforms.Compose(steps))
        if pictures is not None:
            data = Subset(data, range(pictures[0] if train else pictures[1]))
        loaders.append(DataLoader(data, batch_size=BATCH_SIZE if train else 1000, shuffle=train, num_workers=2))
    return loaders


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for data, target in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(data), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    model.eval()
    correct = samples = 0
    for data, target in loader:
        correct += int(model(data).argmax(1).eq(target).sum().item())
        samples += len(data)
    return correct / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("cnn", "resnet18"))
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, nargs=2, metavar=("TRAIN", "TEST"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    is_resnet = arguments.model == "resnet18"
    train_loader, test_loader = make_loaders(arguments.root, is_resnet, arguments.pictures)
    model = small_resnet18() if is_resnet else ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(1, arguments.epochs + 1):
        started = time.perf_counter()
        train(model, train_loader, optimizer)
        trained = time.perf_counter()
        row = {
            "epoch": epoch,
            "test_accuracy": accuracy(model, test_loader),
            "train_seconds": trained - started,
            "test_seconds": time.perf_counter() - trained,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
