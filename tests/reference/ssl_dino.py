"""DINO (arXiv 2104.14294), written with loops from its equations."""

import torch


def distribution(outputs, temperature):
    """Equation 1."""
    powers = [torch.exp(x / temperature) for x in outputs]
    return [power / sum(powers) for power in powers]


def loss(module, views, centre, student_temperature, teacher_temperature):
    """Equation 3 over all pairs of a teacher's global and a student's other view; the mean over pairs and images."""
    features = torch.cat([module.backbone(group) for group in two_and_rest(views)])
    student = module.head(features).split(len(views[0]))
    teacher = module.teacher(torch.cat(views[:2])).detach().split(len(views[0]))
    total, pairs = 0, 0
    for i, targets in enumerate(teacher):
        for j, outputs in enumerate(student):
            if i == j:
                continue
            pairs += 1
            for t, s in zip(targets, outputs, strict=True):
                wanted = distribution(t - centre, teacher_temperature)
                given = distribution(s, student_temperature)
                total = total - sum(w * torch.log(g) for w, g in zip(wanted, given, strict=True))
    return total / (pairs * len(views[0]))


def two_and_rest(views):
    """The global views in one batch, the local ones in another: what BatchNorm sees in the authors' code."""
    return [torch.cat(views[:2]), *([torch.cat(views[2:])] if views[2:] else [])]


def next_centre(centre, teacher_outputs, momentum):
    """Equation 4."""
    mean = sum(teacher_outputs) / len(teacher_outputs)
    return momentum * centre + (1 - momentum) * mean
