"""A tiny network in float64, views to feed it, and what all tests of methods do with them."""

import torch
from torch import nn

DIM = 6


def tiny_backbone(seed=0):
    """Maps (b, 3, h, w) of any size to (b, 6), every value at least 0; it has BatchNorm, as all ResNets do."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, DIM, 3), nn.BatchNorm2d(DIM), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers).double()


def some_views(n=5, sizes=(4, 4), seed=1):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64) for size in sizes]
    return [view.requires_grad_() for view in views]


def gradients(loss, module, views):
    """The gradient of each trainable parameter and each view; zeros where the loss does not depend on it."""
    inputs = {name: p for name, p in module.named_parameters() if p.requires_grad} | dict(enumerate(views))
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return {str(name): torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def step(module, views, total_steps, number, lr=0.1):
    """One step of gradient descent with all that a method asks for around it; returns the loss."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    loss = module(views)[0]
    loss.backward()
    if hasattr(module, "after_backward"):
        module.after_backward(number - 1, total_steps, (number - 1) * module.config.epochs // total_steps)
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p -= lr * p.grad
    if hasattr(module, "after_step"):
        module.after_step(number, total_steps)
    return loss.detach()
