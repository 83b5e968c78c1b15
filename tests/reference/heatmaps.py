"""Heatmaps by the definition, one value at a time."""

import torch


def enlarge(maps, height, width):
    """Bilinear interpolation between the centres of cells, clamped at the border; maps (b, k, rows, columns)."""
    b, k, rows, columns = maps.shape
    out = torch.zeros(b, k, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = v - top, u - left
            out[:, :, y, x] = (
                maps[:, :, top, left] * (1 - dy) * (1 - dx)
                + maps[:, :, top, right] * (1 - dy) * dx
                + maps[:, :, bottom, left] * dy * (1 - dx)
                + maps[:, :, bottom, right] * dy * dx
            )
    return out


def grad_cam(features_of, maps, j):
    """Grad-CAM of feature j for one image: ``features_of`` turns maps (1, c, rows, columns) into (1, r)."""
    maps = maps.detach().clone().requires_grad_()
    features_of(maps)[0, j].backward()
    _, c, rows, columns = maps.shape
    heat = torch.zeros(rows, columns)
    for channel in range(c):
        weight = sum(maps.grad[0, channel, y, x] for y in range(rows) for x in range(columns)) / (rows * columns)
        heat += weight * maps.detach()[0, channel]
    return heat
