"""Pictures of a task without a window or a graphics library: thick lines and discs on a white ground."""

import numpy as np

BLACK, GREY, RED, GREEN, BLUE = (40, 40, 40), (170, 170, 170), (204, 77, 77), (70, 150, 90), (60, 100, 180)
"""Colours."""

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """
    A picture of the plane around the origin, y upwards.

    :param half_width: What lies between the middle and the left or right edge
    :param half_height: What lies between the middle and the upper or lower edge
    :param width: Pixels of a row
    """

    def __init__(self, half_width: float, half_height: float, width: int = 400):
        self._pixel = 2.0 * half_width / width
        height = 2 * round(half_height / self._pixel)
        columns = (np.arange(width) + 0.5) * self._pixel - half_width
        rows = half_height - (np.arange(height) + 0.5) * self._pixel
        self._points = np.stack(np.meshgrid(columns, rows), axis=-1)
        self._picture = np.full((height, width, 3), 255.0)

    def line(self, start: Point, end: Point, thickness: float, colour: Colour) -> None:
        """
        :param start: Where it begins
        :param end: Where it ends
        :param thickness: Its thickness; its ends are round
        :param colour: Its colour
        """
        begin, along = np.array(start), np.subtract(end, start)
        length = max(float(along @ along), 1e-12)
        position = np.clip((self._points - begin) @ along / length, 0.0, 1.0)
        nearest = begin + position[..., None] * along
        self._paint(np.linalg.norm(self._points - nearest, axis=-1) - 0.5 * thickness, colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """
        :param centre: Its centre
        :param radius: Its radius
        :param colour: Its colour
        """
        self._paint(np.linalg.norm(self._points - np.array(centre), axis=-1) - radius, colour)

    def image(self) -> np.ndarray:
        """
        :return: The picture ``(height, width, 3)``, uint8
        """
        return self._picture.round().astype(np.uint8)

    def _paint(self, distance: np.ndarray, colour: Colour) -> None:
        """Cover what has a negative distance, and a pixel on the edge in part."""
        share = np.clip(0.5 - distance / self._pixel, 0.0, 1.0)[..., None]
        self._picture += share * (np.array(colour) - self._picture)
