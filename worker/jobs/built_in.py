"""The datasets that epochd knows by name; `worker.datasets.catalogue` reads them, through torchvision."""

from typing import Final

BUILT_IN: Final = {
    "fashion-mnist": "Zalando's pictures of clothes, 10 classes",
    "mnist": "Handwritten digits, 10 classes",
    "kmnist": "Handwritten Japanese characters (Kuzushiji), 10 classes",
    "emnist-balanced": "Handwritten digits and letters, 47 classes of equal size",
    "emnist-byclass": "Handwritten digits and letters, 62 classes",
    "emnist-bymerge": "Handwritten digits and letters, 47 classes",
    "emnist-digits": "Handwritten digits of EMNIST, 10 classes",
    "emnist-letters": "Handwritten letters, 26 classes",
    "emnist-mnist": "Handwritten digits of EMNIST, arranged as MNIST",
    "cifar10": "Small colour photographs, 10 classes",
    "cifar100": "Small colour photographs, 100 classes",
    "svhn": "House numbers seen from the street, 10 digits",
}
