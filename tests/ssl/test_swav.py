import pytest
import torch
from reference import ssl_swav
from reference.ssl_networks import DIM, gradients, some_views, step, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.swav import RECIPES, Config, SwAV, settle

SIZES = {0: (6, 6), 2: (6, 6, 4, 4)}


def build(n_local=0, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"epochs": 8, "n_prototypes": 3, "hidden_dim": 5, "output_dim": 4, "freeze_epochs": 0}
    return SwAV(tiny_backbone(seed), DIM, Config(**settings | {"n_local": n_local} | changes)).double()


@pytest.mark.parametrize("n_local", [0, 2])
def test_loss_and_gradients_are_the_papers(n_local):
    model, views = build(n_local), some_views(sizes=SIZES[n_local])
    loss = model(views)[0]
    expected = ssl_swav.loss(model, views, model.config)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_the_queue_is_filled_from_its_epoch_and_used_once_full():
    model = build(queue_size=12, queue_start=2)
    lived = []
    for number in range(1, 9):  # one step an epoch
        views = some_views(sizes=SIZES[0], seed=number)
        with torch.no_grad():
            z = ssl_swav.outputs(model, views)
        queues = None if len(lived) < 12 else [torch.stack(rows) for rows in zip(*lived[-12:], strict=True)]
        expected = ssl_swav.loss(model, views, model.config, queues)
        torch.testing.assert_close(step(model, views, 8, number), expected.detach())
        if number > 2:
            lived += list(zip(*z, strict=True))
    stored = torch.stack([torch.cat(pair) for pair in lived[-12:]])
    places = [(len(lived) - 12 + i) % 12 for i in range(12)]
    torch.testing.assert_close(model.queue.rows[places], stored)


def test_a_full_queue_gives_the_papers_gradients():
    model, views = build(2, queue_size=5, queue_start=0), some_views(sizes=SIZES[2])
    step(model, views, 8, 1)
    queues = [rows.clone() for rows in model.queue.rows.chunk(2, dim=1)]
    loss = model(views)[0]
    expected = ssl_swav.loss(model, views, model.config, queues)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_what_is_not_trained_on_leaves_no_trace():
    model = build(queue_size=5, queue_start=0)
    before = model.queue.rows.clone()
    with torch.no_grad():
        model(some_views(sizes=SIZES[0]))
    assert torch.equal(model.queue.rows, before)


def test_prototypes_have_unit_length_before_and_after_each_step():
    model, views = build(), some_views(sizes=SIZES[0])
    for number in (1, 2, 3):
        torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(3, dtype=torch.float64))
        before = model.prototypes.weight.clone()
        step(model, views, 8, number)
        assert not torch.allclose(model.prototypes.weight, before)


def test_prototypes_are_frozen_in_the_first_epochs():
    model, views = build(freeze_epochs=1), some_views(sizes=SIZES[0])
    before = model.prototypes.weight.clone()
    for number in (1, 2):  # two steps an epoch
        step(model, views, 16, number)
        torch.testing.assert_close(model.prototypes.weight, before)
    step(model, views, 16, 3)
    assert not torch.allclose(model.prototypes.weight, before)


def test_the_checkpoint_holds_queue_and_epoch():
    model, views = build(queue_size=7, queue_start=2), some_views(sizes=SIZES[0])
    for number in (1, 2, 3, 4):
        step(model, views, 8, number)
    copy = build(seed=5, queue_size=7, queue_start=2)
    copy.load_state_dict(model.state_dict())
    for number in (5, 6):
        assert torch.equal(step(copy, views, 8, number), step(model, views, 8, number))
    assert torch.equal(copy.queue.rows, model.queue.rows)
    assert (copy.epoch, copy.queue.pushed) == (6, 20)


@pytest.mark.parametrize(("batch_size", "chosen"), [(2, 2), (6, 3), (256, 128), (4096, 512)])
def test_open_prototypes_are_chosen_by_the_batch(batch_size, chosen):
    assert settle(Config(n_prototypes=None), batch_size, 10_000) == Config(n_prototypes=chosen)


@pytest.mark.parametrize(
    ("settings", "batch_size", "n", "most"),
    [({}, 64, 1000, 64), ({"queue_size": 36}, 64, 1000, 100), ({"queue_size": 36}, 64, 90, 90)],
)
def test_more_prototypes_than_samples_are_refused(settings, batch_size, n, most):
    assert settle(Config(n_prototypes=most, **settings), batch_size, n).n_prototypes == most
    with pytest.raises(QScoreError) as error:
        settle(Config(n_prototypes=most + 1, **settings), batch_size, n)
    in_batch = batch_size + settings.get("queue_size", 0)
    assert str(error.value) == (
        f"n_prototypes: expected at most {most}, got {most + 1}: there are {n} images, "
        f"{in_batch} in a batch and the queue; take fewer prototypes, or a larger batch_size or queue_size"
    )


def test_the_published_settings_suit_their_data():
    assert settle(RECIPES["imagenet"], 4096, 1_281_167) == RECIPES["imagenet"]
    assert settle(RECIPES["cifar"], 256, 50_000) == RECIPES["cifar"]


def test_open_prototypes_cannot_be_built():
    with pytest.raises(QScoreError, match="n_prototypes: expected a positive integer, got None"):
        SwAV(tiny_backbone(), DIM, Config(n_prototypes=None))


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (800, 10, 4096, "lars")
    assert config.lr * 4096 / 256 == pytest.approx(4.8)
    assert config.lr_end * 4096 / 256 == pytest.approx(0.0048)
    assert (config.weight_decay, config.temperature, config.sinkhorn_epsilon) == (1e-6, 0.1, 0.05)
    assert (config.sinkhorn_iterations, config.n_prototypes, config.queue_size) == (3, 3000, 0)
    assert (config.hidden_dim, config.output_dim, config.freeze_epochs) == (2048, 128, 1)
    colour = ((3 / 4, 4 / 3), 0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5)
    assert config.augment == Augmentation(224, (0.14, 1.0), *colour)
    assert (config.local, config.n_local) == (Augmentation(96, (0.05, 0.14), *colour), 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"sinkhorn_epsilon": 0.0}, "sinkhorn_epsilon: expected a positive number, got 0.0"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations: expected a positive number, got 0"),
        ({"n_prototypes": 0}, "n_prototypes: expected a positive number, got 0"),
        ({"queue_size": -1}, "queue_size: expected 0 or more, got -1"),
        ({"n_local": -1}, "n_local: expected 0 or more, got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
