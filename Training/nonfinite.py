"""Why a loss, a gradient or a parameter is not finite, in words."""

import math


def reason(model, loss):
    """Why training cannot continue with this loss and the gradients of the model's parameters.

    If all parameters are finite the network overflowed, because a parameter is large or an n close
    to 0.
    """
    if not math.isfinite(loss):
        return names(model.state_dict()) or f"the loss is not finite; {extremes(model)}"
    parameters = model.named_parameters()
    gradients = {k: p.grad for k, p in parameters if p.grad is not None and p.numel()}
    sizes = {name: gradient.abs().max() for name, gradient in gradients.items()}
    largest = max(sizes, key=sizes.get)
    return names({f"the gradient of {k}": g for k, g in gradients.items()}) or (
        "the gradient's norm is not finite; the gradient is, the largest "
        f"{sizes[largest]:.3g} in {largest}"
    )


def names(tensors):
    """Which of these tensors, {name: tensor}, are not finite; empty if all are finite."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    verb = "is" if len(bad) == 1 else "are"
    return f"{', '.join(bad)} {verb} not finite" if bad else ""


def extremes(model):
    """Describes the largest parameter and the smallest |n|."""
    sizes = {name: t.abs() for name, t in model.state_dict().items() if t.numel()}
    largest = max(sizes, key=lambda name: sizes[name].max())
    text = f"all parameters are, the largest {sizes[largest].max():.3g} in {largest}"
    gains = [name for name in sizes if name.endswith(".n")]
    return text + "".join(f"; |n| is {sizes[n].min():.3g} or more in {n}" for n in gains)
