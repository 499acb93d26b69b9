"""Networks learn handwritten digits."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from NetworkCreation.models import PixelClassifier
from NetworkCreation.Networks import ANRU
from tests.layers import seeded


def digits():
    """Images of 4 × 4 pixels in [0, 1] as sequences (16, 1797, 1), and their labels (1797,)."""
    images, labels = load_digits(return_X_y=True)
    squares = torch.tensor(images).float().view(-1, 4, 2, 4, 2).mean(dim=(2, 4)) / 16
    return squares.flatten(1).t().unsqueeze(-1), torch.tensor(labels)


def test_anru_needs_its_supervisors_and_its_recurrence_to_learn_digits():
    x, labels = digits()
    generator = seeded(0)
    order = torch.randperm(len(labels), generator=generator)
    train, validation = order[:1400], order[1400:]
    model = PixelClassifier(ANRU(1, 32, 20, generator=generator), generator=generator)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(4):
        for index in train[torch.randperm(len(train), generator=generator)].split(50):
            optimiser.zero_grad()
            cross_entropy(model(x[:, index]), labels[index]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    @torch.no_grad()
    def accuracy():
        return (model(x[:, validation]).argmax(dim=1) == labels[validation]).float().mean().item()

    learnt, reached = {k: v.clone() for k, v in model.state_dict().items()}, accuracy()
    assert reached >= 0.7
    for maps in (("Uag", "Wgg", "Wgn", "Wgs"), ("Whh",)):  # set back to their initial values
        initial = {name: v for name, v in start.items() if name.split(".")[1] in maps}
        model.load_state_dict(learnt | initial)
        assert accuracy() <= reached - 0.1
