"""What holds for every method, whatever it does."""

import copy
import inspect
import re
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from reference.ssl_networks import DIM, some_views, step, tiny_backbone
from torch import multiprocessing, nn

from qscore import QScoreError
from qscore.ssl.methods import METHODS, TrainingConfig, local_size

TINY = {
    "epochs": 4,
    "hidden_dim": 8,
    "output_dim": 6,
    "prediction_dim": 4,
    "bottleneck_dim": 5,
    "n_prototypes": 3,
    "queue_size": 7,
    "queue_start": 0,
    "n_local": 2,
}


def build(name, seed=0, **changes):
    """The method, tiny and in float64; what not every recipe has (queue, local views) in use."""
    config = METHODS[name].recipes["small"]
    known = {field.name for field in fields(config)}
    config = replace(config, **{key: value for key, value in (TINY | changes).items() if key in known})
    torch.manual_seed(seed)
    return METHODS[name].build(tiny_backbone(seed), DIM, config).double()


def views_for(model, n=6, seed=1):
    return some_views(n, (6, 6, 4, 4)[: len(model.views)], seed)


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_representations_are_the_online_encoders_of_both_global_views(name):
    model = build(name).eval()
    views = views_for(model)
    h = model(views)[1]
    assert h.shape == (12, DIM)
    assert h.requires_grad
    torch.testing.assert_close(h, model.backbone(torch.cat(views[:2])))


def test_gradient_reaches_the_encoder_through_every_view_that_it_learns_from(name):
    model = build(name)
    views = views_for(model)
    model(views)[0].backward()
    assert all(view.grad.abs().sum() > 0 for view in views)


def test_views_are_global_ones_first(name):
    for recipe in METHODS[name].recipes.values():
        config = METHODS[name].check(recipe, 4096, 50_000) if METHODS[name].check else recipe
        config = replace(config, **{key: 6 for key in ("hidden_dim", "output_dim")})
        local = [config.local] * config.n_local if hasattr(config, "local") else []
        views = METHODS[name].build(tiny_backbone(), DIM, config).views
        assert list(views) == [config.augment, getattr(config, "augment2", config.augment), *local]


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(name):
    model = build(name)
    for number in (1, 2):
        step(model, views_for(model, seed=number), 8, number)
    resumed = build(name, seed=9)
    resumed.load_state_dict(model.state_dict())
    for number in (3, 4, 5):
        views = views_for(model, seed=number)
        assert torch.equal(step(resumed, views, 8, number), step(model, views, 8, number))
    for key, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_a_copy_of_a_trained_method_is_independent(name):
    model = build(name)
    step(model, views_for(model), 8, 1)
    twin = copy.deepcopy(model)
    views = views_for(model, seed=3)
    assert torch.equal(step(twin, views, 8, 2), step(model, views, 8, 2))


def test_batches_may_have_any_size(name):
    model = build(name)
    for number, n in enumerate((6, 2, 9), start=1):
        assert step(model, views_for(model, n), 8, number).isfinite()


def test_the_loss_leaves_half_precision(name):
    model = build(name).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, h = model([view.float() for view in views_for(model)])
    assert (loss.dtype, h.dtype) == (torch.float32, torch.bfloat16)
    assert loss.shape == ()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_are_refused(name, n):
    model = build(name)
    with pytest.raises(QScoreError, match=f"expected at least 2 images in a batch, got {n}"):
        model(views_for(model, n))


def test_missing_views_are_refused(name):
    model = build(name)
    with pytest.raises(QScoreError, match=f"expected {len(model.views)} views of each image, got 1"):
        model(views_for(model)[:1])


@pytest.mark.parametrize("recipe", ["imagenet", "cifar", "small"])
def test_settings_offer_what_the_loop_reads(name, recipe):
    config = METHODS[name].recipes[recipe]
    assert is_dataclass(config)
    for field in TrainingConfig.__annotations__:
        assert hasattr(config, field), field
    assert hasattr(config, "local") == hasattr(config, "n_local")
    sizes = {view.size for view in (config.augment, getattr(config, "augment2", config.augment))}
    assert sizes == ({32} if recipe == "cifar" else {224})
    if hasattr(config, "local"):
        assert config.local.size == (local_size(32) if recipe == "cifar" else local_size(224))


def test_every_setting_is_documented_with_its_source(name):
    config = type(METHODS[name].recipes["imagenet"])
    lines = [line.strip() for line in inspect.getsource(config).splitlines()]
    for field in fields(config):
        [place] = [i for i, line in enumerate(lines) if line.startswith(f"{field.name}: ")]
        assert re.fullmatch(r'""".*[a-z0-9\)].*\."""', lines[place + 1]), field.name
        assert re.search(r"section|table|appendix|algorithm|authors' code|does not use", lines[place + 1]), field.name


@pytest.mark.parametrize(("n", "batch"), [(2, 2), (24, 6), (300, 75), (40_000, 256)])
def test_the_small_recipe_suits_any_number_of_images(name, n, batch):
    config = METHODS[name].recipes["small"]
    check = METHODS[name].check
    settled = check(config, batch, n) if check else config
    assert None not in [getattr(settled, field.name) for field in fields(settled)]


def test_local_views_are_small_and_fit_in_the_image():
    sizes = [local_size(side) for side in range(4, 300)]
    assert local_size(224) == 96
    assert sizes == sorted(sizes)
    assert all(size <= side for side, size in enumerate(sizes, start=4))
    assert all(size % 8 == 0 for size in sizes[4:])


def quiet(name):
    """A method without BatchNorm, whose statistics are per process on a CPU; its queue is full."""
    model = build(name, queue_size=12).eval()  # as many as one step pushes at most
    for module in model.modules():
        if hasattr(module, "pushed"):
            module.pushed = 12
    return model


def half(rank, store, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in METHODS:
        model = quiet(name)
        parallel = nn.parallel.DistributedDataParallel(model)
        loss, _ = parallel([view[rank::2] for view in views_for(model)])
        loss.backward()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        found = {"loss": mean / 2, "state": buffers(model)}
        torch.save(found | {key: p.grad for key, p in model.named_parameters()}, folder / f"{name}{rank}.pt")
    torch.distributed.destroy_process_group()


def buffers(model):
    """What a step leaves behind, sorted: processes fill a queue one after the other."""
    saved = model.state_dict().keys()
    return {key: b.flatten().sort().values for key, b in model.named_buffers() if key in saved}


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    multiprocessing.spawn(half, args=(tmp_path / "store", tmp_path), nprocs=2)
    for name in METHODS:
        model = quiet(name)
        loss, _ = model(views_for(model))
        loss.backward()
        expected = {"loss": loss.detach(), "state": buffers(model)}
        expected |= {key: p.grad for key, p in model.named_parameters()}
        for rank in (0, 1):
            theirs = torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True)
            torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
