import pytest
import torch
from reference import ssl_moco
from reference.ssl_networks import DIM, gradients, some_views, step, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.moco import RECIPES, Config, MoCo, settle


def build(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"ema": 0.9, "ema_end": 0.9, "queue_size": 7, "hidden_dim": 5, "output_dim": 4}
    model = MoCo(tiny_backbone(seed), DIM, Config(**settings | changes)).double()
    with torch.no_grad():
        for p in model.keys.parameters():  # as after some steps: no longer the query encoder's
            p.mul_(1.1)
    return model


@pytest.fixture
def model():
    return build()


@pytest.fixture
def views():
    return some_views()


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_and_gradients_are_the_papers(views, symmetric):
    model = build(symmetric=symmetric)
    queue = model.queue.rows.clone()
    loss = model(views)[0]
    expected = ssl_moco.loss(model, views, queue, temperature=0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_only_the_query_encoder_learns(model, views):
    model(views)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.keys.parameters())
    assert all(p.grad.abs().sum() > 0 for p in [*model.backbone.parameters(), *model.head.parameters()])


def test_the_key_encoder_follows(model):
    online = [*model.backbone.parameters(), *model.head.parameters()]
    expected = [0.9 * k + 0.1 * q for k, q in zip(model.keys.parameters(), online, strict=True)]
    model.after_step(3, 4)
    torch.testing.assert_close(list(model.keys.parameters()), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_queue_takes_the_keys_first_in_first_out_beyond_its_end(views, symmetric):
    model = build(symmetric=symmetric)
    lived = list(model.queue.rows)  # oldest first
    for seed in (1, 2, 3):
        batch = some_views(seed=seed)
        lived += [k for view in (reversed(batch) if symmetric else batch[1:]) for k in ssl_moco.unit(model.keys(view))]
        model(batch)
        queue, expected = model.queue.rows.sort(dim=0).values, torch.stack(lived[-7:]).sort(dim=0).values
        torch.testing.assert_close(queue, expected)
    pushed = 3 * 5 * (1 + symmetric)
    places = [(pushed - 7 + i) % 7 for i in range(7)]  # where the oldest to the newest lie
    torch.testing.assert_close(model.queue.rows[places], torch.stack(lived[-7:]))


def test_the_queue_holds_unit_vectors_from_the_start(model):
    torch.testing.assert_close(model.queue.rows.norm(dim=1), torch.ones(7, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not model.queue.full


def test_what_is_not_trained_on_leaves_no_trace(model, views):
    before = model.queue.rows.clone()
    with torch.no_grad():
        model(views)
    assert torch.equal(model.queue.rows, before)


def test_the_checkpoint_holds_the_queue_and_its_place(model, views):
    for number in (1, 2):
        step(model, views, 4, number)
    copy = build(seed=5)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.queue.rows, model.queue.rows)
    more = some_views(seed=7)
    assert torch.equal(step(copy, more, 4, 3), step(model, more, 4, 3))
    assert torch.equal(copy.queue.rows, model.queue.rows)


def test_unwanted_representations_are_not_computed(views):
    model, same = build(), build()
    model.h_wanted = False
    (loss, h), (expected, both) = model(views), same(views)
    assert torch.equal(loss, expected)
    assert torch.equal(h, both[:5])


def test_a_symmetric_loss_needs_both_views_of_everything(views):
    model = build(symmetric=True)
    model.h_wanted = False
    assert model(views)[1].shape == (10, DIM)


@pytest.mark.parametrize(("n", "size"), [(24, 24), (4096, 4096), (100_000, 4096)])
def test_a_queue_of_no_size_is_given_one_by_the_images(n, size):
    assert settle(Config(queue_size=None), 8, n) == Config(queue_size=size)
    assert settle(Config(queue_size=9), 8, n) == Config(queue_size=9)


def test_a_queue_of_no_size_cannot_be_built():
    with pytest.raises(QScoreError, match="queue_size: expected a positive integer, got None"):
        MoCo(tiny_backbone(), DIM, Config(queue_size=None))


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (200, 0, 256, "sgd")
    assert (config.lr, config.weight_decay, config.momentum) == (0.03, 1e-4, 0.9)
    assert (config.temperature, config.ema, config.ema_end, config.queue_size) == (0.2, 0.999, 0.999, 65536)
    assert (config.hidden_dim, config.output_dim, config.symmetric) == (2048, 128, False)
    assert config.augment == Augmentation(224, (0.2, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"queue_size": 0}, "queue_size: expected a positive number, got 0"),
        ({"ema": 2.0}, "ema: expected a number from 0 to 1, got 2.0"),
        ({"hidden_dim": 0}, "hidden_dim: expected a positive number, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
