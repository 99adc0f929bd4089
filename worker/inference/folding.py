"""Batch norm folded into the layer before it: in `eval()` it only scales and shifts, which weights can do as well."""

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_FOLDS = {
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def folded(network: nn.Module) -> nn.Module:
    """The same function, up to rounding, in fewer passes over memory. `network` is in `eval()` and is used up.

    A network whose forward cannot be traced comes back as it is.
    """
    if not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError):  # its way depends on its input
        return network
    modules = dict(traced.named_modules())
    used = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = str(before.target), str(node.target)
        fold = _FOLDS.get((type(modules[layer]), type(modules[norm])))
        if fold is None or used.count(layer) > 1 or used.count(norm) > 1:
            continue
        modules[layer] = fold(modules[layer], modules[norm])  # type: ignore[operator]
        traced.set_submodule(layer, modules[layer])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def aligned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that begin where the processor likes it: in a file, tensors begin anywhere."""
    return {name: tensor.clone() for name, tensor in weights.items()}
