"""A room whose every point is known: a floor and a ball, cast ray by ray, written as OpenCV cameras see them."""

import numpy as np

FLOOR_Y = 1.2
"""World height of the floor (y points down)."""
BALL = np.array([0.3, 0.2, 4.0])
RADIUS = 0.8


def look(yaw=0.0, pitch=0.0, position=(0, 0, 0)):
    """Camera-to-world of a camera turned about its y axis, then about its x axis (radians)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = about_y @ about_x, position
    return pose


def intrinsics(height, width, focal):
    """Of a camera that looks through the middle of its picture; pixel centres at whole numbers."""
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=float)


def render(pose, matrix, height, width):
    """(depth along z in metres, 0 where nothing is hit; world points; RGB) by intersecting each pixel's ray."""
    points = np.zeros((height, width, 3))
    depth = np.zeros((height, width))
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    origin = pose[:3, 3]
    for v in range(height):
        for u in range(width):
            ray = np.array([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], 1.0])
            world = pose[:3, :3] @ ray  # one metre further along z for each unit, so that distances are depths
            hits = []
            if world[1] > 1e-9:
                hits.append(((FLOOR_Y - origin[1]) / world[1], (90, 90, 90)))
            b, c = world @ (origin - BALL), (origin - BALL) @ (origin - BALL) - RADIUS**2
            under = b * b - (world @ world) * c
            if under >= 0:
                hits.append(((-b - np.sqrt(under)) / (world @ world), (220, 40, 40)))
            hits = [hit for hit in hits if hit[0] > 0]
            if hits:
                depth[v, u], rgb[v, u] = min(hits)
                points[v, u] = origin + depth[v, u] * world
    return depth, points, rgb
